"""A server that becomes ten times slower, over real gRPC and links: its streams go on elsewhere, whole."""

import asyncio
from collections import Counter

import grpc.aio
import pytest

from model_server.engines.sim_settings import SimSettings
from router.ejection import BreakerState
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common.fold import Fold
from tests.fakes.inference import channel_to, generation, stream
from tests.fakes.mesh import mesh
from tests.fakes.until import until

pytestmark = pytest.mark.integration

PACED = SimSettings(load_ms=0.0, step_base_ms=50.0, step_per_stream_ms=0.0)
STREAMS, TOKENS = 12, 200


async def whole(channel: grpc.aio.Channel, asked: generation_pb2.Generation) -> inference_pb2.GenerateResponse:
    """A stream's whole answer."""
    folded = Fold()
    async for part in stream(channel, asked):
        folded.add(part)
    return folded.response()


async def test_the_streams_of_a_server_that_crawls_go_on_elsewhere() -> None:
    asked = [generation(f"stream {i} " * 5, max_tokens=TOKENS) for i in range(STREAMS)]
    async with mesh(3, zones=("zone-a",), sim=PACED) as up, channel_to(up.address) as channel:
        answers = asyncio.gather(*(whole(channel, each) for each in asked))
        await until(lambda: all(len(each.server.in_flight) for each in up.servers))
        await until(lambda: all(each.engine.load().steps > 40 for each in up.servers), within_s=20.0)
        slow = up.server("zone-a-0")
        there = len(slow.server.in_flight)
        slow.engine.faults.inject(slow_factor=10.0)
        # At its pace they would need more than a minute.
        found = await asyncio.wait_for(answers, timeout=50.0)
        breakers = up.routers["zone-a"].learned.breakers
        members = up.routers["zone-a"].fleet.snapshot.members
        assert [key[0] for key in members if breakers.state(key) is BreakerState.EJECTED] == ["zone-a-0"]
        lives = Counter(len(each.finished.attempts) for each in found)
        assert lives == {1: STREAMS - there, 2: there}
        assert all(len(each.outputs[0].token_ids) == TOKENS for each in found)
        moved = [each for each in found if len(each.finished.attempts) == 2]
        assert all("many times slower" in each.finished.attempts[0].reason for each in moved)
        await until(lambda: len(slow.server.in_flight) == 0)

    async with mesh(1, zones=("zone-a",)) as alone, channel_to(alone.address) as channel:
        expected = await asyncio.gather(*(whole(channel, each) for each in asked))
    for mine, wanted in zip(found, expected, strict=True):
        assert list(mine.outputs[0].token_ids) == list(wanted.outputs[0].token_ids)
        assert mine.outputs[0].text == wanted.outputs[0].text
