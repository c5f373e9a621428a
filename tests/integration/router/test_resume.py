"""Streams whose server goes away, over real gRPC: a client cannot tell from its stream."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest

from discovery.memory import MemoryCatalog
from model_server.engines.sim_settings import SimSettings
from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2, operations_pb2, operations_pb2_grpc
from stoker_common.fold import Fold
from tests.fakes.fleet import MODEL, QUICK, FleetServer, running_server
from tests.fakes.inference import channel_to, error_details, generation, stream
from tests.fakes.mesh import Mesh, mesh
from tests.fakes.until import until

pytestmark = pytest.mark.integration

SLOW = SimSettings(load_ms=0.0, step_base_ms=15.0, step_per_stream_ms=0.0)
Answer = inference_pb2.GenerateResponse


async def fold(call: Any, begun: Callable[[], None] = lambda: None) -> Answer:
    """The whole answer of a stream. `begun` is told of each part with tokens."""
    folded = Fold()
    async for part in call:
        folded.add(part)
        if part.deltas:
            begun()
    return folded.response()


async def unfaulted(asked: list[generation_pb2.Generation]) -> list[Answer]:
    """What one server alone says."""
    async with mesh(1, zones=("zone-a",)) as up, channel_to(up.servers[0].server.address) as channel:
        return list(await asyncio.gather(*(fold(stream(channel, each)) for each in asked)))


def serving(up: Mesh) -> set[str]:
    """The servers that have something in flight."""
    return {each.server.settings.server_id for each in up.servers if len(each.server.in_flight)}


def kinds() -> list[generation_pb2.Generation]:
    """Requests of every kind that the simulator takes."""
    plain = [generation(f"plain {i} " * (i + 1), max_tokens=60) for i in range(6)]
    several = [generation("three outputs", max_tokens=40, n=3, seed=1, temperature=1.0)]
    seeded = [generation(f"seeded {i}", max_tokens=60, seed=i, temperature=0.8) for i in range(3)]
    logprobs = [generation("with logprobs", max_tokens=50, logprobs=2)]
    penalties = [generation("penalties", max_tokens=50, frequency_penalty=1.0, min_tokens=20)]
    return plain + several + seeded + logprobs + penalties


def assert_same(found: Answer, expected: Answer) -> None:
    """The same tokens, text and logprobs, each once."""
    assert len(found.outputs) == len(expected.outputs)
    for output, wanted in zip(found.outputs, expected.outputs, strict=True):
        assert list(output.token_ids) == list(wanted.token_ids)
        assert output.text == wanted.text
        assert output.finish_reason == wanted.finish_reason
        assert [each.token.token_id for each in output.logprobs] == [each.token.token_id for each in wanted.logprobs]
    assert found.finished.usage.completion_tokens == expected.finished.usage.completion_tokens
    assert found.finished.usage.prompt_tokens == expected.finished.usage.prompt_tokens


@pytest.mark.parametrize("links", [True, False], ids=["links", "calls"])
@pytest.mark.parametrize("how", ["engine dies", "server leaves at once"])
async def test_streams_of_every_kind_go_on_when_their_server_goes(how: str, links: bool) -> None:
    asked = kinds()
    expected = await unfaulted(asked)
    async with mesh(2, sim=SLOW, links=links) as up, channel_to(up.address) as channel:
        begun: set[str] = set()
        answers = asyncio.gather(*(fold(stream(channel, each), partial(begun.add, each.text)) for each in asked))
        # One that has got nothing yet would start over elsewhere, not go on.
        await until(lambda: len(begun) == len(asked) and serving(up) >= {"zone-a-0", "zone-a-1"})
        await until(lambda: up.server("zone-a-0").engine.load().steps > 20)
        victim = up.server("zone-a-0")
        if how == "engine dies":
            victim.engine.faults.inject(dead=True)
        else:
            victim.server.stop()
            victim.server.stop()
        found = await answers
        for answer, wanted in zip(found, expected, strict=True):
            assert_same(answer, wanted)
        resumed = [answer for answer in found if len(answer.finished.attempts) > 1]
        assert resumed, "nothing ran on the server that went"
        for answer in resumed:
            assert answer.finished.exactness == inference_pb2.EXACTNESS_BYTES_EXACT
            assert answer.finished.attempts[0].server == "zone-a-0"
            assert answer.finished.attempts[-1].resume_mode == endpoint_pb2.RESUME_MODE_RESTORE
        await until(up.idle)


async def test_who_wants_to_know_of_a_failure_is_told() -> None:
    async with mesh(1, sim=SLOW) as up, channel_to(up.address) as channel:
        asked = generation("fail please", max_tokens=200)
        asked.on_server_failure = generation_pb2.ON_SERVER_FAILURE_FAIL
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stream(channel, asked):
                up.server("zone-a-0").engine.faults.inject(dead=True)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        reason, _ = error_details(caught.value)
        assert reason == "SERVER_FAILED"
        await until(up.idle)


async def test_the_only_server_comes_back_and_its_streams_go_on() -> None:
    """A zone of one server that restarts: nothing else could serve, so the stream waits."""
    asked = generation("wait for me", max_tokens=80)
    (expected,) = await unfaulted([asked])
    async with mesh(1, zones=("zone-a",), sim=SLOW) as up, channel_to(up.address) as channel:
        call = asyncio.ensure_future(fold(stream(channel, asked)))
        await until(lambda: up.server("zone-a-0").engine.load().steps > 10)
        up.server("zone-a-0").engine.faults.inject(dead=True)
        await until(lambda: up.server("zone-a-0").server.stopping)
        async with next_life(up):
            assert_same(await call, expected)


def next_life(up: Mesh) -> AbstractAsyncContextManager[FleetServer]:
    """The server's next life, under the same id."""
    old = up.server("zone-a-0").server
    return running_server(old.settings, SLOW, registrar=up.catalog.registrar("zone-a", QUICK))


async def test_plain_stubs_can_go_on_themselves() -> None:
    """A client whose router died takes what it has to another: the resume field is all it takes."""
    asked = generation("a stub of one's own", max_tokens=50)
    (expected,) = await unfaulted([asked])
    async with mesh(1, sim=SLOW) as up, channel_to(up.address) as one, channel_to(up.address_of("zone-b")) as other:
        received, folded = 0, Fold()
        call = stream(one, asked)
        async for part in call:
            folded.add(part)
            received += sum(len(delta.token_ids) for delta in part.deltas)
            if received >= 20:
                break
        call.cancel()
        so_far = folded.response()
        again = generation_pb2.Generation()
        again.CopyFrom(asked)
        again.resume.model = so_far.started.model
        again.resume.prompt_token_ids.extend(so_far.started.prompt_token_ids)
        again.resume.outputs.add(token_ids=so_far.outputs[0].token_ids, text_bytes=len(so_far.outputs[0].text.encode()))
        rest = await fold(stream(other, again))
        assert list(so_far.outputs[0].token_ids) + list(rest.outputs[0].token_ids) == list(
            expected.outputs[0].token_ids
        )
        assert so_far.outputs[0].text + rest.outputs[0].text == expected.outputs[0].text
        assert rest.finished.usage.completion_tokens == 50
        assert rest.started.resume_mode == endpoint_pb2.RESUME_MODE_RESTORE


async def call_drain(up: Mesh, server: str, grace_s: float) -> operations_pb2.DrainServerResponse:
    """What `stoker drain` does."""
    request = operations_pb2.DrainServerRequest(server=server)
    request.grace.FromNanoseconds(int(grace_s * 1e9))
    async with channel_to(up.address) as channel:
        response: operations_pb2.DrainServerResponse = await operations_pb2_grpc.OperationsServiceStub(
            channel
        ).DrainServer(request, timeout=5)
        return response


@pytest.mark.parametrize("grace_s", [0.0, 0.3])
async def test_a_drained_servers_streams_move_and_it_leaves(grace_s: float) -> None:
    asked = kinds()
    expected = await unfaulted(asked)
    async with mesh(2, sim=SLOW) as up, channel_to(up.address) as channel:
        answers = asyncio.gather(*(fold(stream(channel, each)) for each in asked))
        await until(lambda: serving(up) >= {"zone-a-0", "zone-a-1"})
        drained = await call_drain(up, "zone-a-0", grace_s)
        assert (drained.server, drained.zone) == ("zone-a-0", "zone-a")
        assert drained.in_flight > 0
        for answer, wanted in zip(await answers, expected, strict=True):
            assert_same(answer, wanted)
        members = up.routers["zone-a"].fleet
        await until(lambda: "zone-a-0" not in {server for server, _ in members.snapshot.members})


async def test_draining_an_unknown_server_says_which_there_are() -> None:
    async with mesh(1, zones=("zone-a",)) as up:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_drain(up, "nobody", 0.0)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "zone-a-0" in (caught.value.details() or "")


@pytest.mark.parametrize("links", [True, False], ids=["links", "calls"])
async def test_maintenance_moves_streams_and_leaves_those_that_must_not_move(links: bool) -> None:
    asked = kinds()
    asked[0].on_server_failure = generation_pb2.ON_SERVER_FAILURE_FAIL
    expected = await unfaulted(asked)
    catalog = MemoryCatalog(("zone-a",))
    async with mesh(2, catalog=catalog, sim=SLOW, links=links) as up, channel_to(up.address) as channel:
        answers = asyncio.gather(*(fold(stream(channel, each)) for each in asked))
        await until(lambda: serving(up) >= {"zone-a-0", "zone-a-1"})
        await until(lambda: all(each.engine.load().steps > 10 for each in up.servers))
        for server in ("zone-a-0", "zone-a-1"):
            catalog.maintain("zone-a", server, on=True)
            await until(lambda server=server: len(up.server(server).server.in_flight) <= 1)  # type: ignore[misc]
            catalog.maintain("zone-a", server, on=False)
            await until(lambda: len(up.routers["zone-a"].fleet.snapshot.holders[MODEL].by_key) == 2)
        found = await answers
        for answer, wanted in zip(found, expected, strict=True):
            assert_same(answer, wanted)
        # Before its first token it may be sent elsewhere like any other.
        assert len([attempt for attempt in found[0].finished.attempts if attempt.tokens]) == 1
        await until(up.idle)


async def test_a_rolling_restart_under_load_loses_nothing() -> None:
    asked = [generation(f"rolling {i}", max_tokens=120) for i in range(24)]
    expected = await unfaulted(asked)
    async with mesh(2, zones=("zone-a",), sim=SLOW) as up, AsyncExitStack() as lives:
        channel = await lives.enter_async_context(channel_to(up.address))
        answers = asyncio.gather(*(fold(stream(channel, each)) for each in asked))
        await until(lambda: serving(up) >= {"zone-a-0", "zone-a-1"})
        for place in (0, 1):
            old = up.servers[place]
            await call_drain(up, old.server.settings.server_id, 0.0)
            await until(lambda old=old: old.server.stopping)  # type: ignore[misc]
            registrar = up.catalog.registrar("zone-a", QUICK)
            new = await lives.enter_async_context(running_server(old.server.settings, SLOW, registrar=registrar))
            key = (new.server.settings.server_id, new.server.epoch)
            await until(lambda key=key: key in up.routers["zone-a"].fleet.snapshot.holders[MODEL].by_key)  # type: ignore[misc]
        for answer, wanted in zip(await answers, expected, strict=True):
            assert_same(answer, wanted)
        assert up.routers["zone-a"].learned.ledger.in_flight == 0
