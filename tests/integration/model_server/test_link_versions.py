"""What speaks another version of the worker link, or none, is served all the same."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from discovery.endpoint import Endpoint
from router.attempt import Attempt
from router.call_transport import CallTransport
from router.link_transport import LinkTransport
from stoker.v1 import worker_link_pb2
from stoker_common.backoff import Backoff
from stoker_common.link.client import Link, LinkRules
from stoker_common.link.state import LinkState
from stoker_common.link.versions import SPOKEN, Versions
from tests.fakes.fleet import running_server
from tests.fakes.inference import channel_to, generation
from tests.fakes.until import until

pytestmark = pytest.mark.integration


@asynccontextmanager
async def attaching(version: int) -> AsyncIterator[Link]:
    """A link to a server, tried by somebody whose highest version is `version`."""
    async with running_server() as up, channel_to(up.server.address) as channel:
        link = Link(
            "s",
            "server s",
            channel,
            worker_link_pb2.Hello(link_version=version, router="r"),
            LinkRules(),
            Backoff(random.Random(0), 0.01, 0.05),
            time.monotonic,
            lambda load: None,
            lambda state: None,
        )
        running = asyncio.ensure_future(link.run())
        try:
            yield link
        finally:
            running.cancel()
            await asyncio.wait((running,))


async def test_a_router_of_a_later_version_is_spoken_to_in_the_servers() -> None:
    async with attaching(SPOKEN.highest + 7) as link:
        await until(lambda: link.state is LinkState.UP)
        _, stream = link.open(generation(max_tokens=3).SerializeToString(), None)
        assert await stream.take()


async def test_a_router_of_no_version_that_the_server_speaks_is_told_which_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        async with attaching(0) as link:
            await until(lambda: any(record.message == "link down" for record in caplog.records))
            assert link.state is LinkState.DOWN
    said = [str(record.__dict__["why"]) for record in caplog.records if record.message == "link down"]
    assert said == [f"hello.link_version: is 0; this server speaks {SPOKEN}"]


@asynccontextmanager
async def reaching(endpoint: Endpoint, versions: Versions = SPOKEN) -> AsyncIterator[LinkTransport]:
    """A transport of a router that speaks these, with this endpoint to reach."""
    transport = LinkTransport(
        CallTransport(),
        router="r",
        zone=endpoint.zone,
        clock=time.monotonic,
        rng=random.Random(0),
        rules=LinkRules(),
        versions=versions,
    )
    running = asyncio.ensure_future(transport.run())
    transport.keep([endpoint])
    try:
        yield transport
    finally:
        running.cancel()
        await asyncio.wait((running,))
        await transport.close()


async def tokens_of(transport: LinkTransport, endpoint: Endpoint) -> int:
    """How many of the five tokens asked for came."""
    async with aclosing(transport.attempt(Attempt(endpoint, generation(max_tokens=5), 5.0))) as parts:
        return sum([len(delta.token_ids) async for part in parts for delta in part.message.deltas])


async def test_a_server_that_offers_no_link_is_served_call_by_call() -> None:
    async with running_server() as up:
        endpoint = replace(up.server.endpoint(), link_version=0)
        async with reaching(endpoint) as transport:
            for _ in range(3):
                assert await tokens_of(transport, endpoint) == 5
            assert up.server.attached_routers == 0


@pytest.mark.parametrize(
    ("server", "router", "attached"),
    [
        (Versions(1, 3), Versions(1, 1), 1),
        (Versions(1, 3), Versions(2, 5), 1),
        (Versions(1, 1), Versions(1, 4), 1),
        (Versions(2, 3), Versions(1, 1), 0),  # the server refuses
        (Versions(1, 1), Versions(2, 3), 0),  # its record tells, the router does not even try
    ],
    ids=str,
)
async def test_a_later_server_speaks_an_earlier_routers_version_or_is_called(
    server: Versions, router: Versions, attached: int
) -> None:
    async with running_server() as up:
        assert up.server.links is not None
        up.server.links.versions = server
        endpoint = replace(up.server.endpoint(), link_version=server.highest)
        async with reaching(endpoint, router) as transport:
            if attached:
                await until(lambda: up.server.attached_routers == 1)
            assert await tokens_of(transport, endpoint) == 5
            assert up.server.attached_routers == attached
