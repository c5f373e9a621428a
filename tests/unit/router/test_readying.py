"""Readying: one order a model, the next server when one refuses, and when waiting is of no use. Fake clock."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from discovery.endpoint import Residency
from router.ejection import Breakers, EjectionRules
from router.ledger import Key
from router.policy import Candidate, Choices, Conditions, Policy
from router.readying import Readying
from router.scorers import Rates
from stoker_common.refusal import Refusal, exhausted, unavailable
from tests.fakes.clock import FakeClock
from tests.fakes.until import until
from tests.unit.router.builders import HOT, MODEL, endpoint, key, request, snapshot
from tests.unit.router.test_router import Scripted

pytestmark = pytest.mark.unit

COLD = replace(HOT, residency=Residency.STAGED, time_to_ready_ms=5_000.0)
ONE, TWO = endpoint("a-1", models=(COLD,)), endpoint("a-2", models=(COLD,))


def choices(clock: FakeClock) -> Choices:
    breakers = Breakers(EjectionRules(), clock, random.Random(1))
    holders = snapshot(ONE, TWO).holders[MODEL].by_key.values()
    return Policy("a", Rates()).weigh(request(), holders, (), Conditions({}, breakers, {}, {}, clock()))


def candidate(server: str, clock: FakeClock) -> Candidate:
    return next(each for each in choices(clock).candidates if each.holder.member.key[0] == server)


class Up:
    """A Readying that runs, over a scripted transport."""

    def __init__(self, **scripts: list[Exception]) -> None:
        self.clock = FakeClock()
        self.transport = Scripted(**scripts)  # type: ignore[arg-type]
        self.hot: list[tuple[Key, str]] = []
        self.news: list[str] = []
        self.registry = CollectorRegistry()
        self.readying = Readying(self.transport, self.registry, self.clock, self._is_hot)
        self.readying.listen(self.news.append)

    def _is_hot(self, key: Key, model: str) -> None:
        self.hot.append((key, model))

    async def ready(self, server: str) -> None:
        """Want it there, until that has ended."""
        self.readying.want(MODEL, candidate(server, self.clock))
        await until(lambda: self.readying.progress(MODEL) is None)


@asynccontextmanager
async def up(**scripts: list[Exception]) -> AsyncIterator[Up]:
    made = Up(**scripts)
    running = asyncio.ensure_future(made.readying.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.wait((running,))


async def test_however_many_want_a_model_one_server_is_asked_and_all_hear_how_far_it_is() -> None:
    async with up() as it:
        it.transport.held.clear()
        for server in ("a-1", "a-2", "a-1"):
            it.readying.want(MODEL, candidate(server, it.clock))
        first = it.readying.progress(MODEL)
        assert first is not None and (first.server, first.remaining.seconds) == ("a-1", 5)
        await until(lambda: bool(it.news))
        now = it.readying.progress(MODEL)
        assert now is not None and now.activity == "waking"
        it.transport.held.set()
        await until(lambda: it.readying.progress(MODEL) is None)
        assert it.transport.readied == ["a-1"] and it.hot == [(key(ONE), MODEL)]
        loads = it.registry.get_sample_value("stoker_router_model_loads_total", {"model": MODEL, "outcome": "ok"})
        assert loads == 1.0


async def test_a_server_that_hangs_at_it_is_left_for_the_next_and_followed_again_if_there_is_none() -> None:
    """It tells every half second that it loads, for ever."""
    async with up() as it:
        it.transport.held.clear()
        it.readying.want(MODEL, candidate("a-1", it.clock))
        await until(lambda: bool(it.news))
        it.clock.advance(61.0)  # expected were 5 s
        it.transport.held.set()
        await until(lambda: it.readying.progress(MODEL) is None)
        assert set(it.readying.failed(MODEL)) == {key(ONE)} and not it.hot
        assert it.readying.hopeless(MODEL, [key(ONE)], None) is None, "who has time waits on"
        soon = it.readying.hopeless(MODEL, [key(ONE)], it.clock() + 5.0)
        assert soon is not None and soon.reason == "MODEL_SLOW"
        await it.ready("a-2")
        assert it.hot == [(key(TWO), MODEL)]


async def test_a_server_that_refused_is_left_out_for_the_time_it_named() -> None:
    async with up(ready_a_1=[exhausted("full", retry_after_s=7.0, reason="NO_ROOM")]) as it:
        await it.ready("a-1")
        assert set(it.readying.failed(MODEL)) == {key(ONE)} and not it.hot
        assert it.readying.changes_at_s(MODEL) == it.clock() + 7.0
        assert it.readying.hopeless(MODEL, [key(ONE), key(TWO)], None) is None, "there is another"
        it.clock.advance(7.0)
        assert not it.readying.failed(MODEL) and it.readying.hopeless(MODEL, [key(ONE)], None) is None


@pytest.mark.parametrize(
    ("refusal", "wait_s", "told"),
    [
        # There will be room: worth waiting for, unless the deadline comes before.
        (exhausted("full", retry_after_s=7.0, reason="NO_ROOM"), None, ""),
        (exhausted("full", retry_after_s=7.0, reason="NO_ROOM"), 10.0, ""),
        (exhausted("full", retry_after_s=7.0, reason="NO_ROOM"), 5.0, "NO_ROOM"),
        # Pinned ones never make room, and what is broken stays so.
        (exhausted("full", reason="NO_ROOM"), None, "NO_ROOM"),
        (unavailable("broken", retry_after_s=5.0, reason="MODEL_FAILED"), None, "MODEL_FAILED"),
        # A server that is gone comes back, or leaves the catalog.
        (unavailable("connection refused"), None, ""),
    ],
)
async def test_waiting_is_of_no_use_when_each_server_has_refused_for_good_or_too_long(
    refusal: Refusal, wait_s: float | None, told: str
) -> None:
    async with up(ready_a_1=[refusal]) as it:
        await it.ready("a-1")
        until_s = None if wait_s is None else it.clock() + wait_s
        hopeless = it.readying.hopeless(MODEL, [key(ONE)], until_s)
        assert (hopeless.reason if hopeless else "") == told
        if hopeless is not None and refusal.retry_after_s is not None:
            assert hopeless.retry_after_s == pytest.approx(refusal.retry_after_s)


def test_among_near_ties_every_router_settles_on_the_same_server() -> None:
    clock = FakeClock()
    policy, found = Policy("a", Rates()), choices(clock)
    turned = Choices(found.candidates[::-1], found.excluded)
    settled = {
        name: policy.settled(found, name).holder.member.key[0]  # type: ignore[union-attr]
        for name in ("m", "n", "o", "p", "q", "r")
    }
    assert settled == {
        name: policy.settled(turned, name).holder.member.key[0]  # type: ignore[union-attr]
        for name in settled
    }
    assert set(settled.values()) == {"a-1", "a-2"}, "other models go elsewhere"
    assert policy.settled(Choices((), {}), "m") is None
