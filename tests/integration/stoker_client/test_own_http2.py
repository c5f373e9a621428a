"""The SDK over Stoker's own HTTP/2: the same answers in every mode, whichever serves; addresses that it cannot take."""

import asyncio
from typing import Literal

import pytest

from stoker_client import Client
from stoker_common.channel import Http2
from tests.fakes.fleet import MODEL
from tests.fakes.mesh import mesh
from tests.fakes.until import until
from tests.integration.stoker_client.test_resume import SLOW, both

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("serves", ["grpc", "stoker"])
@pytest.mark.parametrize("mode", ["relay", "direct"])
async def test_many_streams_at_once(
    monkeypatch: pytest.MonkeyPatch, serves: Http2, mode: Literal["relay", "direct"]
) -> None:
    for section in ("ROUTER", "MODEL_SERVER"):
        monkeypatch.setenv(f"STOKER_{section}_HTTP2", serves)
    async with mesh(2, sim=SLOW) as up:
        found: list[list[str]] = []
        for http2 in ("grpc", "stoker"):
            kind: Http2 = "stoker" if http2 == "stoker" else "grpc"
            async with Client(both(up), mode=mode, http2=kind) as client:
                asked = (client.generate(f"prompt {i}", model=MODEL, max_tokens=30, seed=i) for i in range(12))
                found.append([answer.text for answer in await asyncio.gather(*asked)])
                assert await client.models()
        assert found[0] == found[1] and all(found[0])
        await until(up.idle)


def test_addresses_that_it_cannot_reach() -> None:
    with pytest.raises(ValueError, match="unix:/run/router"):
        Client("unix:/run/router", http2="stoker")
    Client(["unix:/run/router", "consul://127.0.0.1:8500"])
    Client(["[::1]:7070", "router:7070", "consul://127.0.0.1:8500"], http2="stoker")
