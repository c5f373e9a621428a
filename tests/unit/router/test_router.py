"""The router's loop over a transport that does as it is told."""

import asyncio
import random
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import pytest
from opentelemetry.context import Context
from prometheus_client import CollectorRegistry

from discovery.catalog import CatalogView
from discovery.endpoint import Endpoint
from router.attempt import Metadata, Part
from router.ejection import Breakers, BreakerState, EjectionRules
from router.errors import EndpointError, Fault
from router.fleet import Fleet
from router.learned import Learned
from router.ledger import Key, Ledger
from router.metrics import RouterMetrics
from router.policy import Policy
from router.router import RetryRules, Router
from router.scorers import Rates
from router.sessions import Sessions
from router.sizing import Sizing
from router.ways import Ways
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common import tracing
from stoker_common.fold import Fold
from stoker_common.refusal import Code, Refusal, invalid, unavailable
from tests.fakes.clock import FakeClock
from tests.unit.router.builders import MODEL, endpoint, key, view

Message = inference_pb2.GenerateStreamResponse
Script = list[Message | Exception]
A1, A2, A3, A4, B1 = endpoint("a-1"), endpoint("a-2"), endpoint("a-3"), endpoint("a-4"), endpoint("b-1", "b")


def started(of: Endpoint, cached: int = 0) -> Message:
    return Message(
        started=inference_pb2.Started(server=of.server, zone=of.zone, prompt_tokens=100, cached_tokens=cached)
    )


def token(number: int) -> Message:
    return Message(deltas=[inference_pb2.Delta(text=f"t{number} ", token_ids=[number])])


def finished(tokens: int) -> Message:
    return Message(finished=inference_pb2.Finished(usage=inference_pb2.Usage(completion_tokens=tokens)))


def answer(of: Endpoint) -> Script:
    return [started(of), token(1), token(2), finished(2)]


def fault(kind: Fault) -> EndpointError:
    return EndpointError(kind, unavailable(f"a {kind.value} fault"))


class Scripted:
    """A Transport that plays what a server is told to; a server without a script answers well."""

    def __init__(self, **scripts: Script) -> None:
        self.scripts = {name.replace("_", "-"): script for name, script in scripts.items()}
        self.asked: list[str] = []
        self.closed: list[str] = []
        self.timeouts: list[float | None] = []
        self.held = asyncio.Event()
        self.held.set()
        self.was_asked = asyncio.Event()

    async def attempt(
        self, endpoint: Endpoint, generation: generation_pb2.Generation, timeout_s: float | None, metadata: Metadata
    ) -> AsyncGenerator[Part, None]:
        self.asked.append(endpoint.server)
        self.was_asked.set()
        self.timeouts.append(timeout_s)
        try:
            for step in self.scripts.get(endpoint.server, answer(endpoint)):
                await self.held.wait()
                if isinstance(step, Exception):
                    raise step
                yield Part(step.SerializeToString(), step)
        finally:
            self.closed.append(endpoint.server)

    async def answers(self, endpoint: Endpoint, timeout_s: float) -> bool:
        return True

    def keep(self, keys: Iterable[Key]) -> None: ...

    async def close(self) -> None: ...


class Bench:
    """A router over a scripted transport, and all it remembers."""

    def __init__(self, transport: Scripted, *endpoints: Endpoint) -> None:
        self.clock = FakeClock()
        self.transport = transport
        self.learned = Learned(
            Ledger(self.clock), Breakers(EjectionRules(), self.clock, random.Random(1)), Sessions(10), Sizing(), Ways()
        )
        self.fleet = Fleet(self.learned.ledger, lambda members: None)
        self.fleet.publish(view(endpoints) if endpoints else CatalogView())
        self.registry = CollectorRegistry()
        self.router = Router(
            fleet=self.fleet,
            policy=Policy("a", Rates()),
            learned=self.learned,
            transport=transport,
            metrics=RouterMetrics(self.registry),
            traces=tracing.configure("test", environ={}),
            clock=self.clock,
            rng=random.Random(1),
            retry=RetryRules(),
        )

    def parts(self, deadline_s: float | None = None, model: str = MODEL) -> AsyncGenerator[bytes, None]:
        asked = generation_pb2.Generation(
            model=model, text="x" * 400, request_id="r", session=generation_pb2.Session(id="s")
        )
        return self.router.generate(asked, deadline_s, Context())

    async def ask(self, deadline_s: float | None = None, model: str = MODEL) -> inference_pb2.GenerateResponse:
        fold = Fold()
        async with aclosing(self.parts(deadline_s, model)) as parts:
            async for data in parts:
                fold.add(Message.FromString(data))
        return fold.response()

    async def refused(self, deadline_s: float | None = None, model: str = MODEL) -> Refusal:
        with pytest.raises(Refusal) as caught:
            await self.ask(deadline_s, model)
        return caught.value

    def requests(self, outcome: str, zone: str = "a", model: str = MODEL) -> float:
        labels = {"model": model, "zone": zone, "outcome": outcome}
        return self.registry.get_sample_value("stoker_router_requests_total", labels) or 0.0

    def assert_nothing_in_flight(self) -> None:
        assert self.learned.ledger.in_flight == 0
        assert self.registry.get_sample_value("stoker_router_in_flight") == 0
        for account in self.learned.ledger.accounts.values():
            assert (account.own_streams, account.own_prompt_tokens) == (0, 0)


async def test_relays_an_answer_and_says_why_its_server_was_chosen() -> None:
    bench = Bench(Scripted(), A1, B1)
    response = await bench.ask()
    assert response.outputs[0].text == "t1 t2 "
    assert response.started.pick.reason == "nearest zone"
    assert response.started.pick.candidates == 2
    assert [(each.server, each.code, each.tokens) for each in response.finished.attempts] == [("a-1", 0, 2)]
    assert bench.requests("ok") == 1
    bench.assert_nothing_in_flight()


@pytest.mark.parametrize("kind", [Fault.LINK, Fault.SERVER, Fault.BUSY])
async def test_a_failure_before_the_first_chunk_is_tried_elsewhere(kind: Fault) -> None:
    bench = Bench(Scripted(a_1=[fault(kind)]), A1, B1)
    response = await bench.ask()
    assert response.started.server == "b-1"
    assert [(each.server, each.code) for each in response.finished.attempts] == [("a-1", 14), ("b-1", 0)]
    bench.assert_nothing_in_flight()


async def test_a_failure_after_the_first_chunk_is_the_callers_to_know() -> None:
    transport = Scripted(a_1=[started(A1), token(1), fault(Fault.SERVER)])
    bench = Bench(transport, A1, B1)
    refusal = await bench.refused()
    assert (refusal.code, transport.asked) == (Code.UNAVAILABLE, ["a-1"])
    assert bench.requests("unavailable") == 1
    bench.assert_nothing_in_flight()


async def test_the_callers_own_mistake_is_tried_nowhere_else_and_ejects_nobody() -> None:
    transport = Scripted(a_1=[EndpointError(Fault.CALLER, invalid("generation.prompt", "too long"))])
    bench = Bench(transport, A1, B1)
    for _ in range(10):
        assert (await bench.refused()).code is Code.INVALID_ARGUMENT
    assert set(transport.asked) == {"a-1"}
    assert bench.learned.breakers.state(key(A1)) is BreakerState.ALIVE


async def test_three_servers_are_tried_and_the_last_failure_is_told() -> None:
    broken: dict[str, Script] = {f"a_{i}": [fault(Fault.SERVER)] for i in range(1, 5)}
    transport = Scripted(**broken)
    bench = Bench(transport, A1, A2, A3, A4)
    refusal = await bench.refused()
    assert len(transport.asked) == len(set(transport.asked)) == 3
    assert "a server fault" in refusal.message
    assert refusal.retry_after_s is not None
    bench.assert_nothing_in_flight()


async def test_servers_that_were_never_reached_do_not_use_up_the_attempts() -> None:
    cut: dict[str, Script] = {f"a_{i}": [fault(Fault.LINK)] for i in range(1, 5)}
    bench = Bench(Scripted(**cut), A1, A2, A3, A4, B1)
    response = await bench.ask()
    assert response.started.server == "b-1"
    assert len(response.finished.attempts) == 5
    assert all(bench.learned.breakers.state(key(each)) is BreakerState.EJECTED for each in (A1, A2, A3, A4))


async def test_a_stream_that_ends_without_its_last_part_is_a_failure() -> None:
    bench = Bench(Scripted(a_1=[started(A1), token(1)]), A1)
    assert "without finishing" in (await bench.refused()).message


async def test_a_stream_that_ends_before_anything_came_is_tried_elsewhere() -> None:
    bench = Bench(Scripted(a_1=[]), A1, B1)
    assert (await bench.ask()).started.server == "b-1"


async def test_the_deadline_goes_along_and_shrinks() -> None:
    transport = Scripted()
    bench = Bench(transport, A1)
    await bench.ask(deadline_s=bench.clock() + 5)
    assert transport.timeouts == [5]
    assert (await bench.refused(deadline_s=bench.clock())).code is Code.DEADLINE_EXCEEDED
    assert len(transport.asked) == 1


async def test_a_client_that_vanishes_releases_everything_and_ends_the_attempt() -> None:
    transport = Scripted()
    bench = Bench(transport, A1)
    async with aclosing(bench.parts()) as parts:
        await anext(parts)
        assert bench.learned.ledger.in_flight == 1
    assert transport.closed == ["a-1"]
    assert bench.requests("cancelled") == 1
    bench.assert_nothing_in_flight()


async def test_a_cancelled_task_releases_everything() -> None:
    transport = Scripted()
    transport.held.clear()
    bench = Bench(transport, A1)
    task = asyncio.ensure_future(bench.ask())
    await transport.was_asked.wait()
    assert bench.learned.ledger.in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert transport.closed == ["a-1"]
    bench.assert_nothing_in_flight()


async def test_an_unknown_model_is_not_found_and_becomes_no_label() -> None:
    bench = Bench(Scripted(), A1)
    refusal = await bench.refused(model="nobody's")
    assert (refusal.code, refusal.field) == (Code.NOT_FOUND, "generation.model")
    assert "the models are: m" in refusal.message
    assert bench.requests("not_found", zone="", model="") == 1


async def test_before_the_catalog_was_read_callers_are_told_to_come_back() -> None:
    refusal = await Bench(Scripted()).refused()
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "CATALOG_UNREAD")
    assert refusal.retry_after_s


async def test_a_session_returns_to_where_its_cache_is() -> None:
    bench = Bench(Scripted(), A1, A2)
    first = (await bench.ask()).started.server
    answers = [await bench.ask() for _ in range(5)]
    assert {each.started.server for each in answers} == {first}
    assert {each.started.pick.reason for each in answers} == {"session's cache"}


async def test_what_was_in_flight_counts_against_a_server_at_once() -> None:
    transport = Scripted()
    bench = Bench(transport, A1, A2)
    async with aclosing(bench.parts()) as first, aclosing(bench.parts()) as second:
        await anext(first)
        await anext(second)
    assert sorted(transport.asked) == ["a-1", "a-2"]
