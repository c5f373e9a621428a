"""The SDK while routers die: two routers of one mesh, simulated servers, real gRPC. A caller sees one answer."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from model_server.engines.sim_settings import SimSettings
from model_server.engines.sim_tokenizer import SMALLEST_VOCABULARY
from stoker.v1 import inference_pb2
from stoker_client import Client, Code, Options, StokerError
from stoker_client.results import Chunk
from stoker_common.fold import Fold
from tests.fakes.fleet import MODEL
from tests.fakes.mesh import Mesh, mesh
from tests.fakes.stopwatch import Stopwatch
from tests.fakes.until import until

pytestmark = pytest.mark.integration

SLOW = SimSettings(load_ms=0.0, step_base_ms=15.0, step_per_stream_ms=0.0)
# Many a token is half a character, of three bytes or of four.
HALVES = SLOW.model_copy(update={"vocabulary": SMALLEST_VOCABULARY})
Answer = inference_pb2.GenerateResponse
Asked = tuple[str, Options]


def kinds() -> list[Asked]:
    """Forty requests of every kind that the simulator takes."""
    plain: list[Asked] = [(f"plain {i} " * (i + 1), {"max_tokens": 110}) for i in range(14)]
    seeded: list[Asked] = [(f"seeded {i}", {"max_tokens": 110, "seed": i, "temperature": 0.8}) for i in range(10)]
    several: list[Asked] = [(f"three {i}", {"max_tokens": 90, "n": 3, "seed": i}) for i in range(4)]
    logprobs: list[Asked] = [(f"logprobs {i}", {"max_tokens": 100, "logprobs": 2}) for i in range(4)]
    penalties: list[Asked] = [(f"penalties {i}", {"max_tokens": 100, "frequency_penalty": 1.0}) for i in range(4)]
    least: list[Asked] = [(f"min {i}", {"max_tokens": 100, "min_tokens": 40}) for i in range(4)]
    return plain + seeded + several + logprobs + penalties + least


async def ask(client: Client, asked: Asked, *, streamed: bool) -> Answer:
    """The whole answer, by either method."""
    prompt, options = asked
    if not streamed:
        return (await client.generate(prompt, model=MODEL, timeout_s=30, **options)).response
    fold, chunks = Fold(), list[Chunk]()
    async for chunk in client.stream(prompt, model=MODEL, timeout_s=30, **options):
        chunks.append(chunk)
        fold.add(chunk.response)
    assert [chunk.started is not None for chunk in chunks] == [True, *[False] * (len(chunks) - 1)]
    assert [chunk.finished is not None for chunk in chunks] == [*[False] * (len(chunks) - 1), True]
    return fold.response()


async def unfaulted(asked: Sequence[Asked], sim: SimSettings) -> list[Answer]:
    async with mesh(1, zones=("zone-a",), sim=sim) as up, Client(up.address) as client:
        return list(await asyncio.gather(*(ask(client, each, streamed=True) for each in asked)))


def both(up: Mesh) -> list[str]:
    return [up.address_of(zone) for zone in up.routers]


def steps_of(up: Mesh) -> list[int]:
    return [each.engine.load().steps if len(each.server.in_flight) else 0 for each in up.servers]


def in_flight(up: Mesh, zone: str) -> float:
    return up.routers[zone].registry.get_sample_value("stoker_router_in_flight") or 0.0


def assert_same(found: Answer, expected: Answer) -> None:
    """The same tokens, text and logprobs, each once, and counted once."""
    assert len(found.outputs) == len(expected.outputs)
    for output, wanted in zip(found.outputs, expected.outputs, strict=True):
        assert list(output.token_ids) == list(wanted.token_ids)
        assert output.text == wanted.text
        assert output.finish_reason == wanted.finish_reason
        assert list(output.logprobs) == list(wanted.logprobs)
    assert found.finished.usage.completion_tokens == expected.finished.usage.completion_tokens
    assert found.finished.usage.prompt_tokens == expected.finished.usage.prompt_tokens


@pytest.mark.parametrize("sim", [SLOW, HALVES], ids=["words", "half characters"])
async def test_forty_streams_of_every_kind_go_on_when_their_router_is_stopped(sim: SimSettings) -> None:
    asked = kinds()
    expected = await unfaulted(asked, sim)
    split = [answer for answer in expected if not answer.outputs[0].text.isascii()]
    assert sim is SLOW or len(split) > 30
    async with mesh(2, sim=sim, drain_seconds=0.0) as up, Client(both(up)) as client:
        answers = asyncio.gather(*(ask(client, each, streamed=i % 4 > 0) for i, each in enumerate(asked)))
        await until(lambda: sum(len(each.server.in_flight) for each in up.servers) == len(asked))
        steps = steps_of(up)
        await until(lambda: all(now > then + 20 for now, then in zip(steps_of(up), steps, strict=True) if then))
        up.routers["zone-a"].stop()
        found = await answers
        for answer, wanted in zip(found, expected, strict=True):
            assert_same(answer, wanted)
            first, *_, last = answer.finished.attempts
            assert first.code and first.server == answer.started.server and "router" in first.reason
            assert not last.code and last.resume_mode and last.server
            assert (
                sum(attempt.tokens for attempt in answer.finished.attempts) == wanted.finished.usage.completion_tokens
            )
            assert answer.finished.exactness == inference_pb2.EXACTNESS_BYTES_EXACT
        await until(up.idle)


async def test_routers_die_one_after_the_other() -> None:
    """Three routers, two of which stop: the answer has been through all of them."""
    asked: Asked = ("one after the other", {"max_tokens": 120})
    (expected,) = await unfaulted([asked], SLOW)
    zones = ("zone-a", "zone-b", "zone-c")
    async with mesh(1, zones=zones, sim=SLOW, drain_seconds=0.0) as up, Client(both(up)) as client:
        answer = asyncio.ensure_future(ask(client, asked, streamed=True))
        for zone in zones[:2]:
            await until(lambda zone=zone: in_flight(up, zone) == 1)  # type: ignore[misc]
            steps = sum(each.engine.load().steps for each in up.servers)
            await until(lambda steps=steps: sum(each.engine.load().steps for each in up.servers) > steps + 20)  # type: ignore[misc]
            up.routers[zone].stop()
        found = await answer
        assert_same(found, expected)
        assert len(found.finished.attempts) == 3


async def test_who_wants_to_know_of_a_failure_is_told() -> None:
    async with mesh(1, sim=SLOW, drain_seconds=0.0) as up, Client(both(up)) as client:
        stream = client.stream("fail please", model=MODEL, max_tokens=200, on_server_failure="fail")
        with pytest.raises(StokerError, match="asks to fail") as raised:
            async with aclosing(stream):
                async for chunk in stream:
                    if chunk.deltas:
                        up.routers["zone-a"].stop()
        assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "ROUTER_LOST")
        await until(up.idle)


async def test_the_deadline_covers_the_search_for_a_router() -> None:
    async with mesh(1, zones=("zone-a",), sim=SLOW, drain_seconds=0.0) as up, Client(up.address) as client:
        watch = Stopwatch()
        with pytest.raises(StokerError) as raised:
            async for chunk in client.stream("nobody left", model=MODEL, max_tokens=500, timeout_s=1.5):
                if chunk.deltas:
                    up.routers["zone-a"].stop()
        assert raised.value.code is Code.DEADLINE_EXCEEDED
        assert watch.s < 2.5
