"""The router's loop over a transport that does as it is told."""

import asyncio
import random
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.context import Context
from prometheus_client import CollectorRegistry

from discovery.catalog import CatalogView
from discovery.endpoint import Endpoint, Load, Residency
from router.admission import Admission, AdmissionRules
from router.admission_metrics import AdmissionMetrics
from router.attempt import Attempt, OnDigest, OnDirect, OnLink, OnLoad, Part
from router.caches import Caches
from router.calibration import Calibration
from router.ejection import Breakers, BreakerState, EjectionRules
from router.errors import EndpointError, Fault, endpoint_error
from router.fleet import Fleet
from router.learned import Learned
from router.ledger import Ledger
from router.metrics import RouterMetrics
from router.policy import Policy
from router.readying import Readying
from router.retries import RetryRules
from router.retry_budget import RetryBudget, RetryBudgetRules
from router.room import RoomRules, Rooms
from router.router import Router
from router.scorers import Rates
from router.sessions import Sessions
from router.sizing import Sizing
from router.ways import Ways
from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2, model_pb2
from stoker.v1.worker_link_pb2 import Bid
from stoker_common import tracing
from stoker_common.bid import METADATA_KEY
from stoker_common.fold import Fold
from stoker_common.parts import only_deltas
from stoker_common.refusal import Code, Refusal, exhausted, invalid, unavailable
from stoker_common.resuming import MODES
from stoker_common.resuming import continuation as continuation_exactness
from stoker_common.sink import Sink
from tests.fakes.clock import FakeClock
from tests.fakes.until import until
from tests.unit.router.builders import MODEL, endpoint, key, view

Message = inference_pb2.GenerateStreamResponse
Script = list[Message | Exception]
A1, A2, A3, A4, B1 = endpoint("a-1"), endpoint("a-2"), endpoint("a-3"), endpoint("a-4"), endpoint("b-1", "b")


def started(of: Endpoint, cached: int = 0) -> Message:
    about = inference_pb2.Started(
        model=MODEL,
        server=of.server,
        zone=of.zone,
        prompt_tokens=100,
        prompt_token_ids=(7, 8, 9),
        cached_tokens=cached,
        numerics_class=of.numerics_class,
    )
    return Message(started=about)


def token(number: int) -> Message:
    return Message(deltas=[inference_pb2.Delta(text=f"t{number} ", token_ids=[number])])


def finished(tokens: int) -> Message:
    return Message(finished=inference_pb2.Finished(usage=inference_pb2.Usage(completion_tokens=tokens)))


def answer(of: Endpoint) -> Script:
    return [started(of), token(1), token(2), finished(2)]


def continuation(of: Endpoint, state: generation_pb2.ResumeState) -> Script:
    """What comes after the tokens 1, 2, … that were received."""
    first = started(of)
    first.started.resume_mode = state.mode
    exact = [MODES[name] for name in of.exact_modes]
    first.started.resume_exactness = continuation_exactness(state.mode, exact)
    received = len(state.outputs[0].token_ids) if state.outputs else 0
    return [first, *(token(number) for number in range(received + 1, 5)), finished(4)]


def fault(kind: Fault) -> EndpointError:
    return EndpointError(kind, unavailable(f"a {kind.value} fault"))


class Scripted:
    """A Transport that plays what a server is told to; a server without a script answers well."""

    def __init__(self, **scripts: Script) -> None:
        self.scripts = {name.replace("_", "-"): script for name, script in scripts.items()}
        self.asked: list[str] = []
        self.readied: list[str] = []
        self.requests: list[generation_pb2.Generation] = []
        self.closed: list[str] = []
        self.moved: list[bytes] = []
        self.timeouts: list[float | None] = []
        self.held = asyncio.Event()
        self.held.set()
        self.was_asked = asyncio.Event()

    async def attempt(self, attempt: Attempt) -> AsyncGenerator[Part, None]:
        endpoint, generation, relay = attempt.endpoint, attempt.generation, attempt.relay
        self.asked.append(endpoint.server)
        self.requests.append(generation)
        self.was_asked.set()
        self.timeouts.append(attempt.timeout_s)
        try:
            good = continuation(endpoint, generation.resume) if generation.HasField("resume") else answer(endpoint)
            for step in self.scripts.get(endpoint.server, good):
                await self.held.wait()
                if isinstance(step, Exception):
                    raise step
                data, tokens = step.SerializeToString(), sum(len(delta.token_ids) for delta in step.deltas)
                over = attempt.interrupt.error is not None
                if relay is None or not only_deltas(data) or over or not relay(data, tokens):
                    yield Part(data, step)
        finally:
            self.closed.append(endpoint.server)

    async def ready(self, endpoint: Endpoint, model: str) -> AsyncGenerator[model_pb2.ModelProgress, None]:
        self.readied.append(endpoint.server)
        for activity in ("waking", "loading weights"):
            yield model_pb2.ModelProgress(server=endpoint.server, activity=activity)
            await self.held.wait()
        for step in self.scripts.get(f"ready-{endpoint.server}", []):
            if isinstance(step, Exception):
                raise step

    async def put_away(
        self, endpoint: Endpoint, model: str, to: Residency, grace_s: float | None
    ) -> endpoint_pb2.Model:
        return endpoint_pb2.Model(name=model)

    async def answers(self, endpoint: Endpoint, timeout_s: float) -> bool:
        return True

    async def drain(self, endpoint: Endpoint, grace_s: float | None, timeout_s: float) -> int:
        return 0

    def keep(self, endpoints: Iterable[Endpoint]) -> None: ...

    def hear(self, on_direct: OnDirect) -> None:
        """See Transport."""

    def want(self, endpoint: Endpoint) -> None:
        """See Transport."""

    def move(self, endpoint: Endpoint, reservation: bytes, why: str) -> None:
        self.moved.append(reservation)

    def listen(self, on_load: OnLoad, on_link: OnLink, on_digest: OnDigest) -> None: ...

    async def run(self) -> None: ...

    async def reached(self, within_s: float) -> None: ...

    async def close(self) -> None: ...


class EverySecond:
    """A Sink that has room for every second part."""

    def __init__(self, fold: Fold) -> None:
        self._fold = fold
        self._offered = 0

    def put(self, part: bytes) -> bool:
        self._offered += 1
        if self._offered % 2:
            return False
        self._fold.add(Message.FromString(part))
        return True


class Bench:
    """A router over a scripted transport, and all it remembers."""

    def __init__(self, transport: Scripted, *endpoints: Endpoint, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.transport = transport
        self.learned = Learned(
            Ledger(self.clock),
            Breakers(EjectionRules(), self.clock, random.Random(1)),
            Caches(Sessions(10)),
            Sizing(),
            Ways(),
            Calibration(self.clock),
        )
        self.fleet = Fleet(self.learned.ledger, lambda members: None)
        self.fleet.publish(view(endpoints) if endpoints else CatalogView())
        self.registry = CollectorRegistry()
        self.metrics = RouterMetrics(self.registry)
        self.retry_budget = RetryBudget(RetryBudgetRules(), self.clock)
        self.readying = Readying(transport, self.registry, self.clock, self.fleet.hot)
        self.admission = Admission(
            AdmissionRules(hold_s=0.05),
            Rooms(RoomRules(), self.learned.ledger, self.clock),
            self.fleet,
            self.learned,
            self.readying,
            AdmissionMetrics(self.registry),
            self.clock,
        )
        self.router = Router(
            fleet=self.fleet,
            policy=Policy("a", Rates()),
            learned=self.learned,
            admission=self.admission,
            readying=self.readying,
            retry_budget=self.retry_budget,
            transport=transport,
            metrics=self.metrics,
            traces=tracing.configure("test", environ={}),
            clock=self.clock,
            rng=random.Random(1),
            retry=RetryRules(),
        )

    def parts(
        self, deadline_s: float | None = None, model: str = MODEL, sink: Sink | None = None, **fields: Any
    ) -> AsyncGenerator[bytes, None]:
        given: dict[str, Any] = {"text": "x" * 400, "session": generation_pb2.Session(id="s")} | fields
        asked = generation_pb2.Generation(model=model, request_id="r", **given)
        return self.router.generate(asked, deadline_s, Context(), sink)

    async def ask(
        self, deadline_s: float | None = None, model: str = MODEL, **fields: Any
    ) -> inference_pb2.GenerateResponse:
        fold = Fold()
        async with aclosing(self.parts(deadline_s, model, EverySecond(fold), **fields)) as parts:
            async for data in parts:
                fold.add(Message.FromString(data))
        return fold.response()

    async def refused(self, deadline_s: float | None = None, model: str = MODEL, **fields: Any) -> Refusal:
        with pytest.raises(Refusal) as caught:
            await self.ask(deadline_s, model, **fields)
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


class Timed(Scripted):
    """Each server's first token takes 250 ms; it says where 240 of them went."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    async def attempt(self, attempt: Attempt) -> AsyncGenerator[Part, None]:
        async with aclosing(super().attempt(attempt)) as parts:
            async for part in parts:
                if part.message.HasField("started"):
                    self._clock.advance(0.25)
                if part.message.HasField("finished"):
                    part.message.finished.timings.queue.FromMilliseconds(40)
                    part.message.finished.timings.prefill.FromMilliseconds(200)
                    part.message.finished.timings.ttft.FromMilliseconds(240)
                    part = Part(part.message.SerializeToString(), part.message)
                yield part


async def test_the_last_part_says_why_the_server_was_chosen_and_how_long_its_first_token_took() -> None:
    clock = FakeClock()
    bench = Bench(Timed(clock), A1, B1, clock=clock)
    (attempt,) = (await bench.ask()).finished.attempts
    assert attempt.pick.reason == "nearest zone"
    assert attempt.pick.first_token_ms == attempt.pick.cost.prefill_ms > 0
    assert attempt.first_token.ToMilliseconds() == 250


async def test_what_was_predicted_is_held_against_what_came_by_server_and_term() -> None:
    clock = FakeClock()
    bench = Bench(Timed(clock), A1, clock=clock)
    (attempt,) = (await bench.ask()).finished.attempts
    (figures,) = bench.learned.calibration.figures(key(A1))
    predicted_ms = attempt.pick.first_token_ms
    assert figures.error == pytest.approx(abs(predicted_ms - 250) / 250)
    assert figures.terms["queue"] == pytest.approx((0, 40, 40))
    assert figures.terms["prefill"][:2] == pytest.approx((predicted_ms, 200))
    assert figures.terms["rest"][:2] == pytest.approx((0, 10))
    labels = {"term": "prefill", "kind": "off"}
    off = bench.registry.get_sample_value("stoker_router_ttft_term_ms_total", labels)
    assert off == pytest.approx(abs(predicted_ms - 200))


async def test_what_a_first_token_takes_is_predicted_part_by_part_once_it_is_known() -> None:
    clock = FakeClock()
    bench = Bench(Timed(clock), A1, clock=clock)
    answers = [await bench.ask(text=f"{place:04}" * 100, session=None) for place in range(20)]
    (attempt,) = answers[-1].finished.attempts
    assert attempt.pick.first_token_ms == pytest.approx(250)
    expected = attempt.pick.first_token
    assert (expected.ready_ms, expected.queue_ms, expected.rest_ms) == pytest.approx((0, 40, 10))
    assert expected.prefill_ms == pytest.approx(200)


@pytest.mark.parametrize("kind", [Fault.LINK, Fault.SERVER, Fault.BUSY])
async def test_a_failure_before_the_first_chunk_is_tried_elsewhere(kind: Fault) -> None:
    bench = Bench(Scripted(a_1=[fault(kind)]), A1, B1)
    response = await bench.ask()
    assert response.started.server == "b-1"
    assert [(each.server, each.code) for each in response.finished.attempts] == [("a-1", 14), ("b-1", 0)]
    bench.assert_nothing_in_flight()


class Outbid(Scripted):
    """Refuses so many requests, since more waits than their router knew; keeps what they bid."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.bids: list[Bid] = []
        self.bench: Bench | None = None

    async def attempt(self, attempt: Attempt) -> AsyncGenerator[Part, None]:
        self.bids += [
            Bid.FromString(value)
            for name, value in attempt.metadata
            if name == METADATA_KEY and isinstance(value, bytes)
        ]
        if len(self.bids) <= self.times:
            assert self.bench is not None
            self.bench.learned.ledger.report(key(attempt.endpoint), Load(waiting_prompt_tokens=10_000 * len(self.bids)))
            raise endpoint_error(exhausted("more waits", reason="OUTBID"), attempt.endpoint, cut=False)
        async with aclosing(super().attempt(attempt)) as parts:
            async for part in parts:
                yield part


async def test_who_is_outbid_picks_anew_by_what_the_server_said_and_no_attempt_is_counted() -> None:
    transport = Outbid(times=5)  # more often than a request may fail
    bench = transport.bench = Bench(transport, A1, A2)
    response = await bench.ask()
    assert [each.code for each in response.finished.attempts] == [0]
    assert len(transport.bids) == 6
    assert bench.learned.breakers.state(key(A1)) is bench.learned.breakers.state(key(A2)) is BreakerState.ALIVE
    bench.assert_nothing_in_flight()


BROKEN: Script = [started(A1), token(1), token(2), fault(Fault.LINK)]
RESUMING = ("prefill", "replay", "restore")


def resuming(of: Endpoint, *modes: str, numerics_class: str = "n-1") -> Endpoint:
    exact = tuple(mode for mode in modes or RESUMING if mode != "prefill")
    return replace(of, resume_modes=modes or RESUMING, exact_modes=exact, numerics_class=numerics_class)


async def test_a_broken_stream_goes_on_elsewhere_and_the_client_sees_one_stream() -> None:
    transport = Scripted(a_1=[started(resuming(A1)), token(1), token(2), fault(Fault.LINK)])
    bench = Bench(transport, resuming(A1), resuming(B1))
    response = await bench.ask()
    assert response.outputs[0].text == "t1 t2 t3 t4 "
    assert list(response.outputs[0].token_ids) == [1, 2, 3, 4]
    assert response.started.server == "a-1"
    asked = transport.requests[1]
    assert asked.WhichOneof("prompt") is None
    assert list(asked.resume.prompt_token_ids) == [7, 8, 9]
    assert list(asked.resume.outputs[0].token_ids) == [1, 2]
    assert asked.resume.outputs[0].text_bytes == len("t1 t2 ")
    assert list(asked.resume.servers_tried) == ["a-1"]
    assert [(each.server, each.resume_mode, each.tokens) for each in response.finished.attempts] == [
        ("a-1", endpoint_pb2.RESUME_MODE_UNSPECIFIED, 2),
        ("b-1", endpoint_pb2.RESUME_MODE_RESTORE, 2),
    ]
    assert response.finished.exactness == inference_pb2.EXACTNESS_BYTES_EXACT
    bench.assert_nothing_in_flight()


class Booked(Scripted):
    """Notes what is booked where it is asked, as it is asked."""

    bench: "Bench"

    def __init__(self, **scripts: Script) -> None:
        super().__init__(**scripts)
        self.booked: list[int] = []
        # How long each of them takes before it says anything.
        self.pause_s = 0.0

    async def attempt(self, attempt: Attempt) -> AsyncGenerator[Part, None]:
        self.booked.append(self.bench.learned.ledger.accounts[key(attempt.endpoint)].own_prompt_tokens)
        async with aclosing(super().attempt(attempt)) as parts:
            self.bench.clock.advance(self.pause_s)
            async for part in parts:
                yield part


async def test_a_stream_that_goes_on_is_booked_at_what_it_was_chosen_by() -> None:
    """The prompt as it turned out to be (3 ids, not 400 bytes), and the two tokens that came."""
    transport = Booked(a_1=[started(resuming(A1)), token(1), token(2), fault(Fault.LINK)])
    transport.bench = Bench(transport, resuming(A1), resuming(B1))
    await transport.bench.ask()
    assert transport.booked == [100, 5]
    transport.bench.assert_nothing_in_flight()


async def test_the_way_to_a_zone_is_not_learned_from_a_stream_whose_first_token_came_from_another() -> None:
    transport = Booked(a_1=[started(resuming(A1)), token(1), token(2), fault(Fault.LINK)])
    bench = transport.bench = Bench(transport, resuming(A1), resuming(B1))
    bench.learned.ways.observe("b", 80.0, 0.0)
    transport.pause_s = 5.0
    await bench.ask()
    assert transport.asked == ["a-1", "b-1"]
    assert bench.learned.ways.ms["b"] > 80.0


class Turns(Scripted):
    """Every attempt goes on with the answer of ten tokens, with so many of them, and then fails as told."""

    def __init__(self, error: EndpointError, *tokens: int) -> None:
        super().__init__()
        self._error, self._tokens = error, list(tokens)

    async def attempt(self, attempt: Attempt) -> AsyncGenerator[Part, None]:
        endpoint, state = attempt.endpoint, attempt.generation.resume
        received = len(state.outputs[0].token_ids) if state.outputs else 0
        count = self._tokens.pop(0)
        whole = [token(number) for number in range(received + 1, received + count + 1)]
        of = resuming(endpoint)
        self.scripts[endpoint.server] = [started(of), *whole, finished(10) if received + count == 10 else self._error]
        async with aclosing(super().attempt(attempt)) as parts:
            async for part in parts:
                yield part


async def gives_up(bench: Bench, asked: int) -> Refusal:
    """How the stream ends that has asked so many and waited for another as long as it may."""
    refused = asyncio.ensure_future(bench.refused())
    await until(lambda: len(bench.transport.closed) == asked)
    bench.clock.advance(11.0)
    return await refused


STUCK = EndpointError(Fault.SERVER, unavailable("stands still", reason="SERVER_STUCK"))


@pytest.mark.parametrize("error", [STUCK, fault(Fault.LINK)], ids=["stuck", "link"])
async def test_a_stream_returns_to_a_server_that_was_only_suspected_when_no_other_is_left(error: EndpointError) -> None:
    transport = Turns(error, 2, 3, 4, 1)
    bench = Bench(transport, resuming(A1), resuming(A2))
    response = await bench.ask()
    assert list(response.outputs[0].token_ids) == list(range(1, 11))
    assert transport.asked == ["a-1", "a-2", "a-1", "a-2"] or transport.asked == ["a-2", "a-1", "a-2", "a-1"]
    bench.assert_nothing_in_flight()


async def test_it_does_not_return_to_one_where_it_got_nothing() -> None:
    transport = Turns(STUCK, 2, 0, 0)
    refusal = await gives_up(Bench(transport, resuming(A1), resuming(A2)), 3)
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "SERVER_STUCK")
    assert len(transport.asked) == 3, "back to the first, where it had got on, and no further"


async def test_it_never_returns_to_one_that_failed() -> None:
    transport = Turns(fault(Fault.SERVER), 2, 3)
    refusal = await gives_up(Bench(transport, resuming(A1), resuming(A2)), 2)
    assert (refusal.code, len(transport.asked)) == (Code.UNAVAILABLE, 2)


@pytest.mark.parametrize(
    ("modes", "numerics_class", "sampling", "mode", "exactness"),
    [
        (RESUMING, "n-2", {}, endpoint_pb2.RESUME_MODE_RESTORE, inference_pb2.EXACTNESS_STATE_EXACT),
        (RESUMING[:2], "n-1", {}, endpoint_pb2.RESUME_MODE_PREFILL, inference_pb2.EXACTNESS_VALID),
        (RESUMING[:2], "n-1", {"seed": 1}, endpoint_pb2.RESUME_MODE_REPLAY, inference_pb2.EXACTNESS_BYTES_EXACT),
        (RESUMING[:2], "n-1", {"stop": ["x"]}, endpoint_pb2.RESUME_MODE_REPLAY, inference_pb2.EXACTNESS_BYTES_EXACT),
    ],
)
async def test_the_cheapest_mode_that_keeps_what_the_request_asks_for(
    modes: tuple[str, ...], numerics_class: str, sampling: dict[str, Any], mode: int, exactness: int
) -> None:
    first, second = resuming(A1), resuming(B1, *modes, numerics_class=numerics_class)
    transport = Scripted(a_1=[started(first), token(1), token(2), fault(Fault.LINK)])
    bench = Bench(transport, first, second)
    response = await bench.ask(sampling=generation_pb2.Sampling(**sampling))
    assert response.finished.attempts[1].resume_mode == mode
    assert response.finished.exactness == exactness


@pytest.mark.parametrize(
    ("modes", "numerics_class", "fields"),
    [
        (RESUMING[:1], "n-1", {"sampling": generation_pb2.Sampling(seed=1)}),
        (RESUMING, "n-2", {"on_server_failure": generation_pb2.ON_SERVER_FAILURE_EXACT}),
        (RESUMING[:1], "n-1", {"on_server_failure": generation_pb2.ON_SERVER_FAILURE_EXACT}),
    ],
)
async def test_what_cannot_go_on_as_asked_fails_typed(
    modes: tuple[str, ...], numerics_class: str, fields: dict[str, Any]
) -> None:
    first, second = resuming(A1), resuming(B1, *modes, numerics_class=numerics_class)
    transport = Scripted(a_1=[started(first), token(1), fault(Fault.LINK)])
    # The broken one stays listed, with modes of its own: it was tried, and is no way out.
    bench = Bench(transport, resuming(A1, *modes, numerics_class=numerics_class), second)
    refusal = await bench.refused(**fields)
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "NOT_RESUMABLE")
    assert transport.asked == ["a-1"]


async def test_a_caller_may_want_to_know_of_a_failure() -> None:
    transport = Scripted(a_1=BROKEN)
    bench = Bench(transport, resuming(A1), resuming(B1))
    refusal = await bench.refused(on_server_failure=generation_pb2.ON_SERVER_FAILURE_FAIL)
    assert (refusal.code, transport.asked) == (Code.UNAVAILABLE, ["a-1"])
    assert bench.requests("unavailable") == 1
    bench.assert_nothing_in_flight()


class Emptied(Scripted):
    """A transport whose link has a part at hand when its first server is emptied by an operator."""

    async def attempt(self, attempt: Attempt) -> AsyncGenerator[Part, None]:
        async with aclosing(super().attempt(attempt)) as parts:
            async for part in parts:
                if len(self.asked) == 1:
                    attempt.interrupt.fire(fault(Fault.MOVED))
                yield part


async def test_who_wants_to_know_of_a_failure_is_moved_before_the_first_part_or_not_at_all() -> None:
    """What came between being judged movable and being moved must not make it a failure."""
    bench = Bench(Emptied(), A1, A2)
    response = await bench.ask(on_server_failure=generation_pb2.ON_SERVER_FAILURE_FAIL)
    assert len(bench.transport.asked) == 2
    assert list(response.outputs[0].token_ids) == [1, 2]
    assert [each.tokens for each in response.finished.attempts] == [0, 2]
    bench.assert_nothing_in_flight()


async def test_the_second_server_may_die_as_well() -> None:
    first, second, third = resuming(A1), resuming(A2), resuming(B1)
    transport = Scripted(
        a_1=[started(first), token(1), fault(Fault.LINK)], a_2=[started(second), token(2), fault(Fault.SERVER)]
    )
    bench = Bench(transport, first, third)
    # The second is in its own zone, so it comes before the third; the first one is the only one to begin with.
    bench.fleet.publish(view([first]))
    asking = asyncio.ensure_future(bench.ask())
    await transport.was_asked.wait()
    bench.fleet.publish(view([first, second, third]))
    response = await asking
    assert list(response.outputs[0].token_ids) == [1, 2, 3, 4]
    assert transport.asked == ["a-1", "a-2", "b-1"]
    bench.assert_nothing_in_flight()


async def test_a_stream_that_broke_after_its_last_token_only_needs_its_end() -> None:
    transport = Scripted(a_1=[started(resuming(A1)), *(token(i) for i in range(1, 5)), fault(Fault.LINK)])
    bench = Bench(transport, resuming(A1), resuming(B1))
    response = await bench.ask()
    assert list(response.outputs[0].token_ids) == [1, 2, 3, 4]
    assert response.finished.usage.completion_tokens == 4


async def test_a_broken_stream_waits_for_a_server_to_come_back() -> None:
    """The only server restarts: the stream goes on in its next life."""
    transport = Scripted(a_1=[started(resuming(A1)), token(1), fault(Fault.LINK)])
    bench = Bench(transport, resuming(A1))
    asking = asyncio.ensure_future(bench.ask())
    await until(lambda: transport.closed == ["a-1"])
    del transport.scripts["a-1"]
    bench.fleet.publish(view([replace(resuming(A1), epoch="e2")]))
    response = await asking
    assert list(response.outputs[0].token_ids) == [1, 2, 3, 4]
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


async def test_a_server_that_is_overloaded_gets_the_request_again_when_it_may_have_room() -> None:
    busy = EndpointError(Fault.BUSY, exhausted("many wait", reason="SERVER_OVERLOADED", retry_after_s=0.1))
    transport = Scripted(a_1=[busy])
    bench = Bench(transport, A1)
    asking = asyncio.ensure_future(bench.ask())
    await until(lambda: MODEL in bench.admission.queues())
    del transport.scripts["a-1"]
    bench.clock.advance(0.1)
    assert (await asking).started.server == "a-1"
    assert transport.asked == ["a-1", "a-1"]
    bench.assert_nothing_in_flight()


async def test_when_the_retry_budget_is_spent_the_last_failure_is_told() -> None:
    transport = Scripted(a_1=[fault(Fault.SERVER)], a_2=[fault(Fault.SERVER)])
    bench = Bench(transport, A1, A2, A3)
    while bench.retry_budget.take():
        pass
    refusal = await bench.refused()
    assert "a server fault" in refusal.message
    assert len(transport.asked) == 1
    assert bench.registry.get_sample_value("stoker_router_retries_spared_total") == 1


async def test_what_a_lost_server_had_goes_elsewhere_whatever_the_budget() -> None:
    bench = Bench(Scripted(a_1=[fault(Fault.LINK)]), A1, B1)
    while bench.retry_budget.take():
        pass
    assert (await bench.ask()).started.server == "b-1"


async def test_servers_that_were_never_reached_do_not_use_up_the_attempts() -> None:
    cut: dict[str, Script] = {f"a_{i}": [fault(Fault.LINK)] for i in range(1, 5)}
    bench = Bench(Scripted(**cut), A1, A2, A3, A4, B1)
    response = await bench.ask()
    assert response.started.server == "b-1"
    assert len(response.finished.attempts) == 5
    assert all(bench.learned.breakers.state(key(each)) is BreakerState.EJECTED for each in (A1, A2, A3, A4))


async def test_a_stream_that_ends_without_its_last_part_is_a_failure() -> None:
    bench = Bench(Scripted(a_1=[started(A1), token(1)]), A1)
    refusal = await bench.refused()
    assert refusal.reason == "NOT_RESUMABLE"
    assert "without finishing" in refusal.message


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
