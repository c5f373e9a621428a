"""One suite for both ways to a server, calls and links: real gRPC, a simulated server."""

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from discovery.endpoint import Endpoint, Load
from model_server.engines.sim_settings import SimSettings
from router.attempt import Attempt, Part, Transport
from router.call_transport import CallTransport
from router.errors import EndpointError, Fault
from router.interrupt import Interrupt
from router.ledger import Key
from router.link_transport import LinkTransport
from router.prefix_index import PrefixIndex
from stoker.v1 import generation_pb2, inference_pb2
from stoker.v1.worker_link_pb2 import CacheDigest
from stoker_common import prefix
from stoker_common.channel import MAX_REQUEST_BYTES
from stoker_common.fold import Fold
from stoker_common.link.client import LinkRules
from stoker_common.link.outbox import Outbox
from stoker_common.link.state import LinkState
from stoker_common.refusal import Code, unavailable
from stoker_common.settings import env_name
from tests.fakes.chosen import http2
from tests.fakes.fleet import FAST, FleetServer, running_server, server_settings
from tests.fakes.inference import generation
from tests.fakes.stopwatch import Stopwatch
from tests.fakes.until import until

SLOW = SimSettings(load_ms=0.0, step_base_ms=20.0, step_per_stream_ms=0.0)
# So that a slow client is noticed after some dozen tokens.
RULES = LinkRules(stream_bytes=4000)


@dataclass
class Way:
    """A transport, its server, and what the transport told of it."""

    kind: str
    transport: Transport
    fleet: FleetServer
    states: list[LinkState] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    index: PrefixIndex = field(default_factory=PrefixIndex)
    # Whether the next digest gets lost.
    miss_next: bool = False

    @property
    def key(self) -> Key:
        return self.endpoint.server, self.endpoint.epoch

    @property
    def endpoint(self) -> Endpoint:
        return self.fleet.server.endpoint()

    def attempt(
        self, asked: generation_pb2.Generation, *, endpoint: Endpoint | None = None, **how: Any
    ) -> AsyncGenerator[Part, None]:
        return self.transport.attempt(Attempt(endpoint or self.endpoint, asked, **how))

    def cached(self, _: Endpoint, digest: CacheDigest) -> bool:
        """Takes what is announced."""
        if self.miss_next:
            self.miss_next = False
            return True
        return self.index.update(self.key, digest)

    def held(self, asked: generation_pb2.Generation) -> int:
        """How many blocks of the prompt the server has announced."""
        return self.index.depths(prefix.of(asked, asked.model).hashes).get(self.key)

    async def ask(self, asked: generation_pb2.Generation, **how: Any) -> inference_pb2.GenerateResponse:
        fold = Fold()
        async with aclosing(self.attempt(asked, **how)) as parts:
            async for part in parts:
                assert inference_pb2.GenerateStreamResponse.FromString(part.data) == part.message
                fold.add(part.message)
        return fold.response()

    async def refused(self, asked: generation_pb2.Generation, **how: Any) -> EndpointError:
        with pytest.raises(EndpointError) as caught:
            await self.ask(asked, **how)
        return caught.value

    def idle(self) -> bool:
        load = self.fleet.engine.load()
        return not (load.running or load.waiting or len(self.fleet.server.in_flight))


@asynccontextmanager
async def way(kind: str, sim: SimSettings = FAST, **settings: Any) -> AsyncIterator[Way]:
    """A server and the way to it, up."""
    async with running_server(server_settings(**settings), sim) as fleet:
        calls = CallTransport(http2("router"))
        transport: Transport = calls
        if kind == "links":
            transport = LinkTransport(
                calls,
                router="r",
                zone=fleet.server.settings.zone,
                clock=time.monotonic,
                rng=random.Random(1),
                rules=RULES,
            )
        made = Way(kind, transport, fleet)
        transport.listen(
            lambda _, load: made.loads.append(load), lambda _, state: made.states.append(state), made.cached
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(transport.run())
            transport.keep([made.endpoint])
            if kind == "links":
                await until(lambda: made.states == [LinkState.UP])
            try:
                yield made
            finally:
                running.cancel()
                await transport.close()


kinds = pytest.mark.parametrize("kind", ["calls", "links"])


@pytest.fixture(autouse=True, params=["grpc", "stoker"])
def _http2(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose HTTP/2 is at both ends."""
    for section in ("router", "model_server"):
        monkeypatch.setenv(env_name(section, "http2"), request.param)


@kinds
async def test_an_answer_comes_whole_and_in_order(kind: str) -> None:
    async with way(kind) as up:
        answers = await asyncio.gather(*(up.ask(generation(f"prompt {i}", max_tokens=30)) for i in range(20)))
        assert [len(answer.outputs[0].token_ids) for answer in answers] == [30] * 20
        again = await up.ask(generation("prompt 7", max_tokens=30))
        assert again.outputs[0].token_ids == answers[7].outputs[0].token_ids
        assert again.outputs[0].text == answers[7].outputs[0].text
        assert again.finished.usage.completion_tokens == 30
        await until(up.idle)


@kinds
@pytest.mark.parametrize("has_room", [1.0, 0.5])
async def test_what_is_relayed_and_what_is_not_are_the_answer_in_order(kind: str, has_room: float) -> None:
    rng = random.Random(3)
    async with way(kind) as up:
        whole = await up.ask(generation(max_tokens=200))
        fold, relayed, tokens = Fold(), 0, 0

        def relay(data: bytes, count: int) -> bool:
            nonlocal relayed, tokens
            if rng.random() >= has_room:
                return False
            part = inference_pb2.GenerateStreamResponse.FromString(data)
            assert not part.HasField("started")
            assert not part.HasField("finished")
            fold.add(part)
            relayed += 1
            tokens += count
            return True

        async with aclosing(up.attempt(generation(max_tokens=200), relay=relay)) as parts:
            async for part in parts:
                fold.add(inference_pb2.GenerateStreamResponse.FromString(part.data))
                tokens += part.tokens
        assert fold.response().outputs == whole.outputs
        if kind == "links":
            assert relayed > 0
            assert tokens == 200


@pytest.mark.parametrize("told", [True, False], ids=["told", "a server of before"])
async def test_tokens_are_counted_whether_the_server_tells_them_or_not(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Untold(Outbox):
        """Fills no `StreamOutput.tokens`."""

        def put(self, stream_id: int, chunk: bytes, tokens: int) -> None:
            super().put(stream_id, chunk, tokens if told else 0)

    monkeypatch.setattr("model_server.link.Outbox", Untold)
    async with way("links") as up:
        async with aclosing(up.attempt(generation(max_tokens=30))) as parts:
            counted = [part.tokens async for part in parts]
        assert sum(counted) == 30


@kinds
async def test_closing_an_attempt_takes_it_off_the_engine_within_a_second(kind: str) -> None:
    async with way(kind, SLOW) as up:
        async with aclosing(up.attempt(generation(max_tokens=1000))) as parts:
            await anext(parts)
            assert not up.idle()
        assert await until(up.idle, within_s=1.0) < 1.0
        task = asyncio.ensure_future(up.ask(generation(max_tokens=1000)))
        await until(lambda: not up.idle())
        task.cancel()
        await asyncio.wait([task])
        await until(up.idle, within_s=1.0)


@kinds
async def test_an_attempt_can_be_ended_from_outside_with_what_it_then_raises(kind: str) -> None:
    async with way(kind, SLOW) as up:
        interrupt, error = Interrupt(), EndpointError(Fault.BUSY, unavailable("go elsewhere"))
        asking = asyncio.ensure_future(up.refused(generation(max_tokens=1000), interrupt=interrupt))
        await until(lambda: up.fleet.engine.load().running == 1)
        interrupt.fire(error)
        assert await asking is error
        await until(up.idle, within_s=1.0)


@kinds
async def test_the_callers_mistakes_are_the_callers(kind: str) -> None:
    async with way(kind) as up:
        error = await up.refused(generation(max_tokens=-1))
        assert (error.fault, error.refusal.code) == (Fault.CALLER, Code.INVALID_ARGUMENT)
        assert error.refusal.field == "generation.sampling.max_tokens"


@kinds
async def test_a_server_without_the_model_is_no_broken_server(kind: str) -> None:
    async with way(kind) as up:
        error = await up.refused(generation(model="another"))
        assert (error.fault, error.refusal.code) == (Fault.BUSY, Code.NOT_FOUND)


@kinds
async def test_a_full_server_is_no_broken_server(kind: str) -> None:
    sim = SLOW.model_copy(update={"max_streams": 1})
    async with way(kind, sim, max_waiting=1) as up:
        tasks = [asyncio.ensure_future(up.ask(generation(f"{i}", max_tokens=1000))) for i in range(2)]
        await until(lambda: len(up.fleet.server.in_flight) == 2)
        error = await up.refused(generation())
        assert (error.fault, error.refusal.code) == (Fault.BUSY, Code.RESOURCE_EXHAUSTED)
        assert error.refusal.retry_after_s is not None
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await until(up.idle)


@kinds
async def test_a_broken_engine_is_the_servers_fault(kind: str) -> None:
    async with way(kind) as up:
        up.fleet.engine.faults.inject(error_rate=1.0)
        error = await up.refused(generation())
        assert error.fault is Fault.SERVER
        assert up.endpoint.server in error.refusal.message


@kinds
async def test_an_engine_that_dies_ends_its_streams(kind: str) -> None:
    async with way(kind, SLOW) as up:
        async with aclosing(up.attempt(generation(max_tokens=1000))) as parts:
            await anext(parts)
            up.fleet.engine.faults.inject(dead=True)
            with pytest.raises(EndpointError) as caught:
                async for _ in parts:
                    pass
        assert caught.value.fault in (Fault.SERVER, Fault.LINK)
        assert caught.value.refusal.code is Code.UNAVAILABLE


@kinds
async def test_a_server_that_cannot_be_reached_is_told_from_one_that_fails(kind: str) -> None:
    async with way(kind) as up:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # taken, and not listening
            away = replace(up.endpoint, server="away", epoch="e", address=f"127.0.0.1:{nobody.getsockname()[1]}")
            error = await up.refused(generation(), endpoint=away)
            assert error.fault is Fault.LINK
            assert not await up.transport.answers(away, 0.5)
        assert await up.transport.answers(up.endpoint, 0.5)


async def test_a_server_at_whose_address_another_one_answers_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """Addresses are given away again, and a restarted server is another one: what is well there is not this one."""
    async with way("links") as up:
        gone = replace(up.endpoint, server="gone", epoch="before")
        up.transport.keep([up.endpoint, gone])
        # A link that was never up says nothing; the log tells why.
        await until(lambda: any("not before" in str(record.__dict__.get("why")) for record in caplog.records))
        assert not await up.transport.answers(gone, 1.0)
        error = await up.refused(generation(), endpoint=gone)
        assert (error.fault, error.refusal.reason) == (Fault.LINK, "SERVER_LOST")
        assert up.states == [LinkState.UP]
        assert await up.transport.answers(up.endpoint, 1.0)
        assert len((await up.ask(generation(max_tokens=5))).outputs[0].token_ids) == 5


@kinds
async def test_the_deadline_goes_along(kind: str) -> None:
    async with way(kind, SLOW) as up:
        watch = Stopwatch()
        error = await up.refused(generation(max_tokens=1000), timeout_s=0.3)
        assert watch.s < 1.5
        assert (error.fault, error.refusal.code) == (Fault.CALLER, Code.DEADLINE_EXCEEDED)
        await until(up.idle, within_s=1.0)


@kinds
async def test_a_request_of_almost_the_largest_size_harms_no_other(kind: str) -> None:
    """With what a link adds it would be more than gRPC takes, and gRPC ends the call: the link, with all on it."""
    async with way(kind, SLOW) as up:
        other = asyncio.ensure_future(up.ask(generation(max_tokens=100)))
        await until(lambda: not up.idle())
        large = generation("x")
        large.text = "x" * (MAX_REQUEST_BYTES - len(large.SerializeToString()) - 10)
        error = await up.refused(large)
        # It reached the server, whose context is shorter.
        assert (error.fault, error.refusal.code) == (Fault.CALLER, Code.INVALID_ARGUMENT)
        larger = generation("x" * MAX_REQUEST_BYTES)
        error = await up.refused(larger)
        assert (error.fault, error.refusal.reason) == (Fault.CALLER, "REQUEST_TOO_LARGE")
        assert str(MAX_REQUEST_BYTES) in error.refusal.message
        assert len((await other).outputs[0].token_ids) == 100
        assert up.states == [LinkState.UP] * (kind == "links")


@kinds
async def test_a_part_that_is_larger_than_a_slow_clients_buffer_reaches_who_reads(kind: str) -> None:
    async with way(kind) as up:
        answer = await up.ask(generation("a b c d e f g " * 300, max_tokens=3))
        assert answer.started.ByteSize() > RULES.stream_bytes
        assert len(answer.outputs[0].token_ids) == 3


@kinds
async def test_a_slow_client_holds_up_nobody(kind: str) -> None:
    async with way(kind) as up:
        async with aclosing(up.attempt(generation("slow", max_tokens=1500))) as slow:
            await anext(slow)
            quick = await up.ask(generation("quick", max_tokens=200))
            assert len(quick.outputs[0].token_ids) == 200
            if kind == "links":
                # Past its buffer the stream is cancelled on the server, read or not.
                await until(up.idle, within_s=10.0)
                with pytest.raises(EndpointError) as caught:
                    async for _ in slow:
                        pass
                assert caught.value.fault is Fault.CALLER
                assert caught.value.refusal.code is Code.RESOURCE_EXHAUSTED
                assert caught.value.refusal.reason == "CLIENT_TOO_SLOW"
                assert up.states == [LinkState.UP]


async def test_links_bring_loads_without_being_asked() -> None:
    async with way("links", SLOW) as up:
        await until(lambda: bool(up.loads))
        asking = asyncio.ensure_future(up.ask(generation(max_tokens=100)))
        await until(lambda: up.loads[-1].running == 1)
        await asking
        await until(lambda: up.loads[-1].running == 0)


async def test_a_server_says_goodbye_over_its_link_and_ends_what_runs() -> None:
    async with way("links", SLOW) as up:
        asking = asyncio.ensure_future(up.ask(generation(max_tokens=30)))
        await until(lambda: not up.idle())
        up.fleet.server.stop()
        await until(lambda: LinkState.LEAVING in up.states)
        assert len((await asking).outputs[0].token_ids) == 30


async def test_an_engine_that_stands_still_is_noticed_over_its_link_and_told_when_it_moves() -> None:
    async with way("links", SLOW) as up:
        asking = asyncio.ensure_future(up.refused(generation(max_tokens=1000)))
        await until(lambda: up.fleet.engine.load().steps > 10)
        up.fleet.engine.faults.inject(stall=True)
        began_s = time.monotonic()
        watch = Stopwatch()
        error = await asking
        # 2 s, a tick, a heartbeat.
        assert watch.s < 4.0
        assert time.monotonic() - began_s > 1.5
        assert (error.fault, error.refusal.reason) == (Fault.SERVER, "SERVER_STUCK")
        assert up.states == [LinkState.UP, LinkState.STALLED]
        await until(up.idle, within_s=1.0)
        up.fleet.engine.faults.inject(stall=False)
        assert len((await up.ask(generation(max_tokens=5))).outputs[0].token_ids) == 5
        await until(lambda: up.states[-1] is LinkState.UP)


@kinds
async def test_no_task_and_no_descriptor_is_left(kind: str) -> None:
    def descriptors() -> int:
        return len(os.listdir(Path("/proc/self/fd")))

    async with way(kind) as up:  # gRPC keeps some of its own from the first use on
        await up.ask(generation(max_tokens=5))
    tasks, before = len(asyncio.all_tasks()), descriptors()
    for _ in range(3):
        async with way(kind) as up:
            await up.ask(generation(max_tokens=5))
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await until(lambda: descriptors() <= before + 2)


LONG = "the boilers are hot and the lamps are lit; " * 50


async def test_a_link_tells_what_is_cached_with_the_part_that_shows_it() -> None:
    async with way("links", SLOW) as up:
        asked = generation(LONG, max_tokens=1000)
        asked.session.id = "s"
        async with aclosing(up.attempt(asked)) as parts:
            assert up.held(asked) == 0
            await anext(parts)
            assert up.held(asked) == len(LONG) // 256
        assert up.index.sessions(up.key) == 1
        await until(up.idle)


async def test_a_next_turn_is_announced_when_the_answer_ends() -> None:
    async with way("links") as up:
        asked = generation(LONG, max_tokens=200)
        answer = await up.ask(asked)
        whole = generation(LONG + answer.outputs[0].text)
        assert up.held(whole) == len(whole.text.encode()) // 256 > up.held(asked)
        again = await up.ask(generation(whole.text + " and then?", max_tokens=1))
        assert again.started.cached_tokens > 0.9 * again.started.prompt_tokens


async def test_a_digest_that_was_missed_is_asked_for_anew() -> None:
    async with way("links") as up:
        await up.ask(generation(LONG, max_tokens=2))
        up.miss_next = True
        await up.ask(generation("another: " + LONG, max_tokens=2))
        await up.ask(generation("a third: " + LONG, max_tokens=2))
        await until(lambda: up.held(generation("another: " + LONG)) > 0)
        assert up.held(generation(LONG)) == up.held(generation("a third: " + LONG)) > 0


async def test_a_long_digest_holds_up_no_stream() -> None:
    rng = random.Random(1)
    async with way("links") as up:
        cache = up.fleet.server.digest.cache(10**9, 16)
        for session in range(1, 1001):
            cache.add(prefix.Prefix(tuple(rng.getrandbits(64) for _ in range(100)), 25_600, b"state"), 6400, session)
        cache.add(prefix.of(generation(LONG), generation().model), 500, 0)
        # It begins anew because of a gap, and a stream goes on meanwhile.
        up.miss_next = True
        asking = asyncio.ensure_future(up.ask(generation(max_tokens=50)))
        await until(lambda: up.index.blocks(up.key) > 100_000, within_s=20.0)
        assert len((await asking).outputs[0].token_ids) == 50
        assert up.held(generation(LONG)) == len(LONG) // 256
        assert up.index.sessions(up.key) == 1000


async def test_a_server_whose_engine_has_no_prefix_cache_announces_nothing() -> None:
    async with way("links", FAST.model_copy(update={"prefix_cache": False})) as up:
        asked = generation(LONG, max_tokens=2)
        asked.session.id = "s"
        await up.ask(asked)
        assert up.key in up.index
        assert (up.index.blocks(up.key), up.index.sessions(up.key)) == (0, 0)
