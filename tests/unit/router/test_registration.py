"""A router's life in the catalog."""

import asyncio

import pytest

from discovery.endpoint import Endpoint
from router.config import RouterSettings
from router.registration import advertised, registered


@pytest.mark.parametrize(
    ("listen", "advertise", "expected"),
    [
        ("127.0.0.1", "", "127.0.0.1:7070"),
        ("::1", "", "[::1]:7070"),
        ("0.0.0.0", "r1.eu", "r1.eu:7070"),
        ("0.0.0.0", "r1.eu:443", "r1.eu:443"),
        ("0.0.0.0", "[fd00::1]:443", "[fd00::1]:443"),
        ("0.0.0.0", "", "this-host:7070"),
    ],
)
def test_where_clients_reach_it(listen: str, advertise: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "this-host")
    settings = RouterSettings.model_validate({"listen_host": listen, "advertise_address": advertise})
    assert advertised(settings, 7070) == expected


class Registrar:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.kept = asyncio.Event()

    def announce(self, endpoint: Endpoint) -> None:
        assert endpoint.epoch
        self.told.append(f"{endpoint.server} at {endpoint.address} in {endpoint.zone}")

    def set_health(self, *, passing: bool, note: str) -> None:
        assert passing

    async def run(self) -> None:
        self.kept.set()
        await asyncio.Event().wait()

    def leaving(self, reason: str) -> None:
        self.told.append("leaving")

    async def leave(self, reason: str) -> None:
        self.told.append("left")


def port() -> int:
    return 7071


async def test_it_is_registered_once_it_listens_and_until_it_has_drained() -> None:
    registrar = Registrar()
    async with registered(registrar, RouterSettings.model_validate({"router_id": "r1"}), port) as listening:
        await asyncio.sleep(0)
        assert not registrar.told
        listening.set()
        await asyncio.wait_for(registrar.kept.wait(), 5)
        assert registrar.told == ["r1-7071 at 127.0.0.1:7071 in zone-a"]
    assert registrar.told[1:] == ["left"]


async def test_a_port_that_cannot_be_had_is_told_as_it_is() -> None:
    registrar = Registrar()
    with pytest.raises(OSError, match="taken"):
        async with registered(registrar, RouterSettings.model_validate({"router_id": "r1"}), port):
            raise OSError("the port is taken")
    assert not registrar.told
