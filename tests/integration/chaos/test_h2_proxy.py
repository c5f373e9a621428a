"""The chaos harness's HTTP/2 proxy does to gRPC what it says, and nothing else."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from stoker.v1 import inference_pb2
from tests.chaos.h2_proxy import Proxy
from tests.fakes.fleet import running_server
from tests.fakes.inference import channel_to, generation, rest, stream, token_ids
from tests.fakes.until import until

pytestmark = pytest.mark.integration

STREAMS, TOKENS = 8, 200


class Fronted:
    """Streams that run through a proxy to one server."""

    def __init__(self, channel: grpc.aio.Channel, commands: Path) -> None:
        self.channel = channel
        self._commands = commands

    def tell(self, command: str) -> None:
        """The proxy is told."""
        fresh = self._commands.with_suffix(".new")
        fresh.write_text(command)
        fresh.replace(self._commands)

    async def outcomes(self, command: str) -> list[str]:
        """How streams end that run when the proxy is told: `whole`, or a status code's name."""
        calls = [stream(self.channel, generation(f"{i}", max_tokens=TOKENS)) for i in range(STREAMS)]
        begun = await asyncio.gather(*(call.read() for call in calls))
        self.tell(command)

        async def one(number: int) -> str:
            try:
                first = begun[number]
                assert isinstance(first, inference_pb2.GenerateStreamResponse)
                parts = [first, *await rest(calls[number])]
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "whole" if len(token_ids(parts)) == TOKENS else "short"

        return list(await asyncio.gather(*(one(number) for number in range(STREAMS))))


@asynccontextmanager
async def fronted(folder: Path) -> AsyncIterator[Fronted]:
    commands = folder / "commands"
    async with running_server() as up:
        proxy = Proxy(f"127.0.0.1:{up.server.port}", commands, random.Random(1))
        async with await asyncio.start_server(proxy.accept, "127.0.0.1", 0) as listening:
            obeying = asyncio.ensure_future(proxy.obey())
            port = listening.sockets[0].getsockname()[1]
            try:
                async with channel_to(f"127.0.0.1:{port}") as channel:
                    yield Fronted(channel, commands)
            finally:
                obeying.cancel()
        await until(lambda: not len(up.server.in_flight))


async def test_a_goaway_lets_what_runs_finish_and_sends_the_next_elsewhere(tmp_path: Path) -> None:
    async with fronted(tmp_path) as up:
        assert await up.outcomes("goaway") == ["whole"] * STREAMS
        assert await up.outcomes("goaway") == ["whole"] * STREAMS


async def test_a_goaway_that_disowns_everything_breaks_what_runs(tmp_path: Path) -> None:
    async with fronted(tmp_path) as up:
        assert await up.outcomes("goaway-all") == ["UNAVAILABLE"] * STREAMS


@pytest.mark.parametrize(("code", "status"), [(2, "INTERNAL"), (7, "UNAVAILABLE"), (8, "CANCELLED")])
async def test_a_reset_breaks_one_stream(tmp_path: Path, code: int, status: str) -> None:
    async with fronted(tmp_path) as up:
        outcomes = await up.outcomes(f"reset {code}")
        assert sorted(outcomes) == sorted([*["whole"] * (STREAMS - 1), status])
