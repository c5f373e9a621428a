"""What a client's log says of a link that breaks: real gRPC, a peer that welcomes and then says nothing."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from stoker.v1 import generation_pb2, worker_link_pb2
from stoker_client import StokerError
from stoker_client.peer import LinkUse, Peer
from stoker_common.backoff import Backoff
from stoker_common.link.client import LinkRules
from stoker_common.link.versions import SPOKEN
from tests.fakes.until import until

pytestmark = pytest.mark.integration

LOGGER = "stoker_client.peer"


@asynccontextmanager
async def silent(*, knows_links: bool) -> AsyncIterator[str]:
    async def attach(_: Any, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        hello = worker_link_pb2.AttachRequest.FromString(await context.read()).hello
        welcome = worker_link_pb2.Welcome(link_version=min(hello.link_version, SPOKEN.highest))
        await context.write(worker_link_pb2.AttachResponse(welcome=welcome).SerializeToString())
        await asyncio.sleep(60.0)

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Attach": grpc.stream_stream_rpc_method_handler(attach)} if knows_links else {}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("stoker.v1.WorkerLinkService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def ask(address: str) -> None:
    use = LinkUse(streams=1, wait_s=5.0, rules=LinkRules(silent_s=0.2, tick_s=0.05, stalled_s=None))
    hello = worker_link_pb2.Hello(link_version=SPOKEN.highest, router="a client", client=True)
    peer = Peer(address, hello, use, Backoff(random.Random(1), 0.1, 1.0))
    try:
        with pytest.raises(StokerError):
            async for _ in peer.stream(generation_pb2.Generation(model="m", text="secret words"), (), 5.0):
                pass
        await until(lambda: peer._attached is None)
    finally:
        await peer.close()


async def test_a_link_that_was_lost_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    async with silent(knows_links=True) as address:
        await ask(address)
    (record,) = [each for each in caplog.records if each.name == LOGGER]
    assert record.levelno == logging.WARNING
    said = record.getMessage()
    assert address in said and "no sign of life for 0.2 s" in said and "secret" not in said


async def test_a_peer_that_offers_no_link_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    async with silent(knows_links=False) as address:
        await ask(address)
    (record,) = [each for each in caplog.records if each.name == LOGGER]
    assert record.levelno == logging.INFO and address in record.getMessage()
