"""Admission with a clock that tests hold: what waits moves only when something makes room."""

import asyncio
import random
import time
from collections.abc import Collection

import pytest
from prometheus_client import CollectorRegistry

from discovery.endpoint import Endpoint, Load
from router.admission import Admission, AdmissionRules
from router.admission_metrics import AdmissionMetrics
from router.caches import Caches
from router.calibration import Calibration
from router.ejection import Breakers, EjectionRules
from router.fleet import Fleet
from router.learned import Learned
from router.ledger import Booking, Key, Ledger
from router.outlook import Ask
from router.policy import Chosen, Conditions, Policy
from router.readying import Readying
from router.room import RoomRules, Rooms
from router.scorers import Rates
from router.sessions import Sessions
from router.sizing import Sizing
from router.ways import Ways
from stoker_common.refusal import Code, Refusal, exhausted
from tests.fakes.clock import FakeClock
from tests.fakes.until import until
from tests.unit.router.builders import MODEL, endpoint, key, request, view
from tests.unit.router.test_router import Scripted

# One place each, and nobody waits there: what is admitted is seen at once.
A1, A2 = endpoint("a-1", max_streams=1), endpoint("a-2", max_streams=1)


class Bench:
    """Admission over a fleet, and who was admitted in which order."""

    def __init__(self, *endpoints: Endpoint, queue_length: int = 8, hold_s: float = 5.0) -> None:
        self.clock = FakeClock()
        breakers = Breakers(EjectionRules(), self.clock, random.Random(1))
        self.learned = Learned(
            Ledger(self.clock), breakers, Caches(Sessions(10)), Sizing(), Ways(), Calibration(self.clock)
        )
        self.fleet = Fleet(self.learned.ledger, lambda members: None)
        self.registry = CollectorRegistry()
        self.admission = Admission(
            AdmissionRules(queue_length, hold_s),
            Rooms(RoomRules(waiting_per_server=0), self.learned.ledger, self.clock),
            self.fleet,
            self.learned,
            Readying(Scripted(), self.registry, self.clock, self.fleet.hot),
            AdmissionMetrics(self.registry),
            self.clock,
        )
        self.publish(*endpoints)
        self.admitted: list[str] = []
        self.bookings: list[Booking] = []
        self.tasks: dict[str, asyncio.Task[str]] = {}

    def publish(self, *endpoints: Endpoint) -> None:
        self.fleet.publish(view(endpoints))

    def choose(self, tried: Collection[Key]) -> Chosen | None:
        learned = self.learned
        conditions = Conditions(
            learned.ledger.accounts, learned.breakers, {}, {}, self.clock(), rooms=self.admission.rooms
        )
        return Policy("a", Rates()).choose(request(), self.fleet.snapshot, tried, conditions, random.Random(1))

    async def admit(self, name: str, priority: int, deadline_s: float | None, tried: set[Key], hold: bool) -> str:
        ask = Ask(request(), priority, deadline_s, tried, hold)
        chosen = await self.admission.admit(ask, lambda: self.choose(tried))
        if chosen is None:
            return "nobody"
        member = chosen.candidate.holder.member
        self.bookings.append(self.learned.ledger.book(member.key, 10))
        self.admitted.append(name)
        return member.endpoint.server

    async def ask(
        self,
        name: str,
        priority: int = 0,
        within_s: float | None = None,
        tried: Collection[Endpoint] = (),
        hold: bool = True,
    ) -> None:
        """A request comes, and goes as far as it can."""
        deadline_s = None if within_s is None else self.clock() + within_s
        went = self.admit(name, priority, deadline_s, {key(each) for each in tried}, hold)
        self.tasks[name] = asyncio.ensure_future(went)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def end_one(self) -> None:
        """The request that runs longest ends."""
        self.bookings.pop(0).close()
        await self.settle()

    async def refusal(self, name: str) -> Refusal:
        with pytest.raises(Refusal) as caught:
            async with asyncio.timeout(5):
                await self.tasks[name]
        return caught.value

    @property
    def waiting(self) -> int:
        return self.admission.queues().get(MODEL, (0, 0.0))[0]

    def refused(self, reason: str) -> float:
        labels = {"model": MODEL, "reason": reason}
        return self.registry.get_sample_value("stoker_router_refusals_total", labels) or 0.0


async def test_while_there_is_room_nobody_waits() -> None:
    bench = Bench(A1, A2)
    await bench.ask("one")
    await bench.ask("two")
    assert bench.admitted == ["one", "two"]
    assert {await task for task in bench.tasks.values()} == {"a-1", "a-2"}
    assert bench.waiting == 0


async def test_who_waits_goes_by_priority_then_deadline_then_arrival() -> None:
    bench = Bench(A1)
    await bench.ask("runs")
    await bench.ask("batch", priority=5)
    await bench.ask("whenever")
    await bench.ask("later", within_s=90)
    await bench.ask("soon", within_s=60)
    await bench.ask("whenever too")
    await bench.ask("urgent", priority=-1)
    assert (bench.admitted, bench.waiting) == (["runs"], 6)
    for _ in range(6):
        await bench.end_one()
    assert bench.admitted == ["runs", "urgent", "soon", "later", "whenever", "whenever too", "batch"]
    assert bench.admission.queues() == {}


async def test_one_place_lets_one_in() -> None:
    bench = Bench(A1)
    for name in ("runs", "one", "two", "three"):
        await bench.ask(name)
    await bench.end_one()
    assert (bench.admitted, bench.waiting) == (["runs", "one"], 2)


async def test_a_newcomer_does_not_overtake_one_that_was_just_woken() -> None:
    bench = Bench(A1)
    await bench.ask("runs")
    await bench.ask("first")
    bench.bookings.pop(0).close()
    await bench.ask("newcomer")
    assert bench.admitted == ["runs", "first"]


async def test_a_new_server_lets_in_as_many_as_it_has_room_for() -> None:
    bench = Bench(A1)
    for name in ("runs", "one", "two", "three"):
        await bench.ask(name)
    bench.publish(A1, endpoint("a-2", max_streams=2))
    await bench.settle()
    assert (bench.admitted, bench.waiting) == (["runs", "one", "two"], 1)


async def test_a_report_that_the_others_are_gone_makes_room() -> None:
    bench = Bench(A1)
    bench.learned.ledger.report(key(A1), Load(running=3))
    await bench.ask("waits")
    assert bench.admitted == []
    bench.learned.ledger.report(key(A1), Load())
    await bench.settle()
    assert bench.admitted == ["waits"]


async def test_one_that_cannot_use_the_room_there_is_holds_up_nobody() -> None:
    bench = Bench(A1, A2)
    await bench.ask("on one")
    await bench.ask("on the other")
    await bench.ask("knows a-1", tried=[A1])
    await bench.ask("knows none")
    at = [await bench.tasks[name] for name in ("on one", "on the other")].index("a-1")
    bench.bookings[at].close()
    await bench.settle()
    assert bench.admitted == ["on one", "on the other", "knows none"]
    bench.bookings[1 - at].close()
    await bench.settle()
    assert bench.admitted[-1] == "knows a-1"


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    bench = Bench(A1, queue_length=2)
    for name in ("runs", "one", "two", "three"):
        await bench.ask(name)
    refusal = await bench.refusal("three")
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert refusal.retry_after_s
    assert (bench.waiting, bench.refused("QUEUE_FULL")) == (2, 1)


async def test_in_a_full_queue_the_least_makes_way_for_more_priority() -> None:
    bench = Bench(A1, queue_length=2)
    await bench.ask("runs")
    await bench.ask("batch", priority=9)
    await bench.ask("chat")
    await bench.ask("chat too")
    assert (await bench.refusal("batch")).reason == "QUEUE_FULL"
    await bench.ask("batch again", priority=9)
    assert (await bench.refusal("batch again")).reason == "QUEUE_FULL"
    await bench.end_one()
    await bench.end_one()
    assert bench.admitted == ["runs", "chat", "chat too"]


async def test_no_queue_at_all() -> None:
    bench = Bench(A1, queue_length=0)
    await bench.ask("runs")
    await bench.ask("one")
    assert (await bench.refusal("one")).reason == "QUEUE_FULL"


async def test_a_wait_that_would_exceed_the_deadline_is_refused_at_once() -> None:
    bench = Bench(A1)
    bench.learned.services.observe(MODEL, 2.0, 100)
    await bench.ask("runs")
    await bench.ask("in time", within_s=5)
    await bench.ask("late", within_s=6)
    refusal = await bench.refusal("late")
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "WAIT_EXCEEDS_DEADLINE")
    assert refusal.retry_after_s == pytest.approx((2 * 2.0 + 2.0) * 1.2 - 6.0)
    await bench.ask("has time", within_s=60)
    assert bench.waiting == 2


async def test_a_deadline_that_passes_in_the_queue() -> None:
    bench = Bench(A1)
    await bench.ask("runs")
    await bench.ask("waits", within_s=0.02)
    await asyncio.sleep(0)
    bench.clock.advance(0.02)
    refusal = await bench.refusal("waits")
    assert refusal.code is Code.DEADLINE_EXCEEDED
    assert bench.waiting == 0


async def test_a_turn_that_comes_too_late_costs_no_server_anything() -> None:
    bench = Bench(A1)
    await bench.ask("runs")
    await bench.ask("waits", within_s=5)
    bench.learned.services.observe(MODEL, 2.0, 100)
    bench.clock.advance(4.0)
    await bench.end_one()
    refusal = await bench.refusal("waits")
    assert (refusal.code, refusal.reason) == (Code.DEADLINE_EXCEEDED, "WAITED_TOO_LONG")
    await bench.ask("next")
    assert bench.admitted == ["runs", "next"]


async def test_who_leaves_makes_way_at_once() -> None:
    bench = Bench(A1, queue_length=1)
    await bench.ask("runs")
    await bench.ask("leaves")
    bench.tasks["leaves"].cancel()
    await bench.settle()
    assert bench.waiting == 0
    await bench.ask("stays")
    await bench.end_one()
    assert bench.admitted == ["runs", "stays"]


async def test_one_that_leaves_with_its_turn_gives_it_to_the_next() -> None:
    bench = Bench(A1)
    for name in ("runs", "leaves", "stays"):
        await bench.ask(name)
    bench.bookings.pop(0).close()
    bench.tasks["leaves"].cancel()
    await bench.settle()
    assert bench.admitted == ["runs", "stays"]


async def test_while_no_server_can_take_the_model_requests_are_held_until_one_can() -> None:
    bench = Bench(A1)
    bench.publish(endpoint("a-1", models=()))
    await bench.ask("held")
    assert (bench.admitted, bench.waiting) == ([], 1)
    bench.publish(A1)
    await bench.settle()
    assert bench.admitted == ["held"]


async def test_but_not_for_ever() -> None:
    bench = Bench(A1, hold_s=0.02)
    bench.publish(endpoint("a-1", models=()))
    await bench.ask("held")
    bench.clock.advance(0.02)
    assert await bench.tasks["held"] == "nobody"
    assert (bench.waiting, bench.refused("NO_ENDPOINT")) == (0, 1)


async def test_those_that_wait_for_a_server_that_goes_are_held_as_well() -> None:
    bench = Bench(A1, hold_s=0.02)
    for name in ("runs", "one", "two"):
        await bench.ask(name)
    bench.publish(endpoint("a-1", models=()))
    await bench.settle()
    bench.clock.advance(0.02)
    assert [await bench.tasks[name] for name in ("one", "two")] == ["nobody", "nobody"]


async def test_who_has_tried_all_and_may_not_be_held_hears_it_at_once() -> None:
    bench = Bench(A1)
    await bench.ask("tried it", tried=[A1], hold=False)
    assert await bench.tasks["tried it"] == "nobody"


async def test_a_server_that_said_it_is_overloaded_gets_the_next_when_it_may_have_room() -> None:
    bench = Bench(A1)
    bench.admission.rooms.refused(key(A1), exhausted("x", reason="SERVER_OVERLOADED", retry_after_s=0.1))
    await bench.ask("waits")
    assert bench.waiting == 1
    bench.clock.advance(0.1)
    await until(lambda: bench.admitted == ["waits"])


async def test_metrics_tell_length_and_age() -> None:
    bench = Bench(A1)
    for name in ("runs", "one"):
        await bench.ask(name)
    bench.clock.advance(3.0)
    await bench.ask("two")
    labels = {"model": MODEL}
    assert bench.registry.get_sample_value("stoker_router_queue_length", labels) == 2
    assert bench.registry.get_sample_value("stoker_router_queue_oldest_seconds", labels) == 3.0
    await bench.end_one()
    assert bench.registry.get_sample_value("stoker_router_queue_wait_seconds_sum", labels) == 3.0


async def test_while_nothing_waits_admission_costs_next_to_nothing() -> None:
    """Beside the pick itself: less than 10 us, of which this allows three times as much on a shared machine."""
    bench = Bench(A1)
    chosen = bench.choose(())
    ask = Ask(request())

    async def best_us(rounds: int) -> float:
        began = time.perf_counter()
        for _ in range(rounds):
            await bench.admission.admit(ask, lambda: chosen)
        return (time.perf_counter() - began) / rounds * 1e6

    assert min([await best_us(2000) for _ in range(5)]) < 30
