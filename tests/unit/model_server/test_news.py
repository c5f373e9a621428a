"""News of clients' own streams waits a moment for company, and not where somebody waits for it."""

from collections.abc import Callable

import pytest

from model_server.news import HOLD_S, News
from stoker.v1 import worker_link_pb2
from stoker_common.refusal import Code
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.unit

STARTED = worker_link_pb2.DirectStream(reservation=b"a", part=b"started")
ENDED = worker_link_pb2.DirectStream(reservation=b"b", part=b"finished", last=True)
FAILED = worker_link_pb2.DirectStream(
    reservation=b"c", last=True, error=worker_link_pb2.StreamError(code=Code.UNAVAILABLE.value)
)


class Writer:
    """What the news is told to: counts wake-ups, keeps timers."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.full = False
        self.woken = 0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.news = News(self.clock, lambda s, call: self.timers.append((s, call)), self.wake, lambda: self.full)

    def wake(self) -> None:
        self.woken += 1

    def pass_(self, seconds: float) -> None:
        self.clock.advance(seconds)
        timers, self.timers = self.timers, []
        for _, call in timers:
            call()

    def sent(self) -> list[tuple[bytes, int]]:
        """The reservations that a message names now, and how long ago each thing was, in ms."""
        step = worker_link_pb2.Step()
        self.news.take(step)
        return [(each.reservation, round(each.ago.ToNanoseconds() / 1e6)) for each in step.direct]


def test_what_comes_within_a_moment_is_one_message_and_says_when_it_was() -> None:
    writer = Writer()
    writer.news.add(STARTED)
    writer.clock.advance(0.03)
    writer.news.add(ENDED)
    assert (writer.woken, writer.news.due, [s for s, _ in writer.timers]) == (0, False, [HOLD_S])
    writer.pass_(0.02)
    assert (writer.woken, writer.news.due) == (1, True)
    assert writer.sent() == [(b"a", 50), (b"b", 20)]
    assert not writer.news.due


def test_it_goes_with_whatever_goes_before_and_then_wakes_nobody() -> None:
    writer = Writer()
    writer.news.add(STARTED)
    assert writer.sent() == [(b"a", 0)]
    writer.pass_(HOLD_S)
    assert (writer.woken, writer.sent()) == (0, [])


def test_a_failure_waits_for_nothing() -> None:
    writer = Writer()
    writer.news.add(STARTED)
    writer.news.add(FAILED)
    assert (writer.woken, writer.news.due) == (1, True)


def test_an_end_waits_for_nothing_where_others_wait_for_it() -> None:
    writer = Writer()
    writer.full = True
    writer.news.add(STARTED)
    assert writer.woken == 0
    writer.news.add(ENDED)
    assert (writer.woken, writer.news.due) == (1, True)


def test_what_was_long_ago_when_it_came_is_longer_ago_when_it_goes() -> None:
    writer = Writer()
    missed = worker_link_pb2.DirectStream()
    missed.CopyFrom(STARTED)
    missed.ago.FromNanoseconds(3 * 10**9)
    writer.news.add(missed)
    writer.pass_(HOLD_S)
    assert writer.sent() == [(b"a", 3050)]
    assert missed.ago.ToNanoseconds() == 3 * 10**9  # another process of the router's is told the same


def test_each_wait_has_one_timer() -> None:
    writer = Writer()
    for _ in range(3):
        writer.news.add(STARTED)
    assert len(writer.timers) == 1
    writer.pass_(HOLD_S)
    writer.sent()
    writer.news.add(STARTED)
    assert len(writer.timers) == 1
