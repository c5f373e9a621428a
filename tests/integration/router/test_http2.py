"""A mesh whose routers and servers serve by our own HTTP/2: plain stubs get what they get by grpc's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from model_server.engines.sim_settings import SimSettings
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common.channel import Http2
from stoker_common.fold import Fold
from tests.fakes.inference import channel_to, generation, stream, unary
from tests.fakes.mesh import Mesh, mesh
from tests.fakes.until import until

pytestmark = pytest.mark.integration

# Tokens come faster than they are sent one by one.
QUICK = SimSettings(load_ms=0.0, step_base_ms=0.5, step_per_stream_ms=0.0)


@asynccontextmanager
async def up(monkeypatch: pytest.MonkeyPatch, kind: Http2) -> AsyncIterator[Mesh]:
    for section in ("ROUTER", "MODEL_SERVER"):
        monkeypatch.setenv(f"STOKER_{section}_HTTP2", kind)
    async with mesh(2, zones=("zone-a",), sim=QUICK) as running:
        yield running


async def whole(
    channel: grpc.aio.Channel, asked: generation_pb2.Generation
) -> tuple[inference_pb2.GenerateResponse, int]:
    """An answer, and in how many messages."""
    fold, messages = Fold(), 0
    async for part in stream(channel, asked):
        fold.add(part)
        messages += 1
    return fold.response(), messages


async def test_answers_are_those_of_grpcs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [generation(f"prompt {i}", max_tokens=80, n=1 + i % 2) for i in range(12)]
    answers: dict[str, list[list[str]]] = {}
    kinds: tuple[Http2, ...] = ("grpc", "stoker")
    for kind in kinds:
        async with up(monkeypatch, kind) as running, channel_to(running.address) as channel:
            found = await asyncio.gather(*(whole(channel, each) for each in asked))
            answers[kind] = texts([answer for answer, _ in found])
            assert texts([await unary(channel, each) for each in asked]) == answers[kind]
            server = running.servers[0].server
            async with channel_to(server.address) as directly:
                there = await asyncio.gather(*(whole(directly, each) for each in asked))
            assert texts([answer for answer, _ in there]) == answers[kind]
            await until(running.idle)
            if kind == "stoker":
                assert max(messages for _, messages in found) < 60, "tokens every half a millisecond share messages"
    assert answers["grpc"] == answers["stoker"]


def texts(answers: list[inference_pb2.GenerateResponse]) -> list[list[str]]:
    return [[output.text for output in answer.outputs] for answer in answers]


async def test_clients_that_vanish_in_the_middle_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with up(monkeypatch, "stoker") as running:
        async with channel_to(running.address) as channel:
            calls = [stream(channel, generation(f"prompt {i}", max_tokens=4000, ignore_eos=True)) for i in range(40)]
            for call in calls:
                await call.read()
            for call in calls[::2]:
                call.cancel()
        await until(running.idle)


async def test_a_client_that_does_not_read_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with up(monkeypatch, "stoker") as running, channel_to(running.address) as channel:
        slow = stream(channel, generation("slow", max_tokens=4000, ignore_eos=True))
        await slow.read()
        answers = await asyncio.gather(*(whole(channel, generation(f"beside {i}", max_tokens=50)) for i in range(8)))
        assert all(answer.finished.usage.completion_tokens == 50 for answer, _ in answers)
        slow.cancel()
        await until(running.idle)
