"""Who makes room for whom: the table of room.py, line by line."""

from dataclasses import replace
from math import log2

import pytest

from model_server.residency.room import KEEP, MARGIN, Limits, Price, Room, Seat, make_room, price, yields_at_s

pytestmark = pytest.mark.unit

NOW = 1000.0
LONG_AGO = 0.0
# An exchange costs 10 s: 4 to ready the wanted one, 6 to bring the other back.
WANTED = Seat("wanted", share=0.45, demand_per_s=0.1, ready_s=4.0)
OLD = Seat("old", share=0.45, hot_since_s=LONG_AGO, used_at_s=LONG_AGO, ready_s=6.0)
KEPT_UNTIL = NOW - 1.0 + KEEP * 10.0
NEW = replace(OLD, name="new", hot_since_s=NOW - 1.0, used_at_s=NOW - 1.0)
TWO = Limits(max_hot=2)


@pytest.mark.parametrize(
    ("seat", "wanted", "at_s"),
    [
        # Hot for long: yields to anybody, busy or not, wanted more or less.
        (OLD, WANTED, NOW),
        (replace(OLD, users=3, demand_per_s=9.0), WANTED, NOW),
        # Just woken: not while it is used or soon will be, to one of as much demand or less ...
        (replace(NEW, demand_per_s=0.1, users=1), WANTED, KEPT_UNTIL),
        (replace(NEW, demand_per_s=0.02, users=1), replace(WANTED, demand_per_s=0.01), KEPT_UNTIL),
        (replace(NEW, demand_per_s=0.09, users=1), WANTED, KEPT_UNTIL),
        (replace(NEW, demand_per_s=9.0), WANTED, KEPT_UNTIL),
        (replace(NEW, demand_per_s=0.11, users=1), replace(WANTED, demand_per_s=0.11 * MARGIN), KEPT_UNTIL),
        # ... but to one of far more, and when it is idle and nobody is expected before it could be back.
        (replace(NEW, demand_per_s=0.1), replace(WANTED, demand_per_s=0.16), NOW),
        (replace(NEW, demand_per_s=0.1, users=1), replace(WANTED, demand_per_s=0.16), NOW),
        (replace(NEW, demand_per_s=0.09), WANTED, NOW),
        (replace(NEW, demand_per_s=0.02), replace(WANTED, demand_per_s=0.01), NOW),
        (NEW, replace(WANTED, demand_per_s=0.0), NOW),
        # Until then it stays, if nobody asks for it: 0.15 a second has a minute's half-life, and must be 0.1.
        (replace(NEW, demand_per_s=0.15), WANTED, NOW + 60.0 * log2(1.5)),
        # What was watched for a minute falls faster: two requests of a minute ago make less of a rate every second.
        (replace(NEW, demand_per_s=0.15, watched_s=60.0), WANTED, NOW + 60.0 * log2(1.25)),
        # Pins and what is on its way.
        (replace(OLD, pinned=True), replace(WANTED, demand_per_s=99.0), None),
        (replace(OLD, moving=True), replace(WANTED, demand_per_s=99.0), NOW + 0.5),
    ],
)
def test_a_hot_model_yields_when(seat: Seat, wanted: Seat, at_s: float | None) -> None:
    assert yields_at_s(seat, wanted, NOW) == (None if at_s is None else pytest.approx(at_s))


def test_with_room_nobody_yields() -> None:
    assert make_room(WANTED, [], Limits(), NOW) == Room()
    assert make_room(WANTED, [OLD], TWO, NOW) == Room()
    third = [replace(OLD, name=name, share=0.3) for name in "ab"]
    assert make_room(replace(WANTED, share=0.3), third, Limits(max_hot=3), NOW) == Room()


def test_idle_ones_go_first_then_the_least_recently_used_and_no_more_than_needed() -> None:
    old = [replace(OLD, name=name, share=0.2, used_at_s=at_s) for name, at_s in (("a", 3.0), ("b", 1.0), ("c", 2.0))]
    assert make_room(WANTED, old, Limits(max_hot=3), NOW).victims == ("b",)
    assert make_room(replace(WANTED, share=0.6), old, Limits(max_hot=4), NOW).victims == ("b", "c")
    old[1] = replace(old[1], users=1)
    assert make_room(WANTED, old, Limits(max_hot=3), NOW).victims == ("c",)


def test_who_finds_no_room_is_told_when_there_may_be_some() -> None:
    busy = replace(NEW, demand_per_s=5.0, users=2)
    room = make_room(WANTED, [busy], Limits(), NOW)
    assert not room.victims and "new" in room.refused
    assert room.retry_after_s == pytest.approx(KEPT_UNTIL - NOW)
    assert make_room(WANTED, [replace(OLD, pinned=True)], Limits(), NOW).retry_after_s is None
    assert make_room(WANTED, [replace(OLD, moving=True)], Limits(), NOW).retry_after_s == 0.5


def test_what_is_larger_than_the_budget_is_refused_for_good() -> None:
    room = make_room(replace(WANTED, share=0.95), [], Limits(), NOW)
    assert "95%" in room.refused and room.retry_after_s is None


def test_two_models_in_equal_demand_exchange_seldom() -> None:
    """An hour of asking for both in turn, one request a second: exchanges take a sixth of the time at most."""
    hot, since_s, exchanges, busy_until_s = "a", 0.0, 0, 0.0
    for second in range(3600):
        now_s = float(second)
        asked = "ab"[second % 2]
        if asked == hot or now_s < busy_until_s:
            continue
        seat = Seat(hot, demand_per_s=0.5, users=0, hot_since_s=since_s, ready_s=5.0)
        if not make_room(Seat(asked, demand_per_s=0.5, ready_s=5.0), [seat], Limits(), now_s).refused:
            hot, exchanges, busy_until_s = asked, exchanges + 1, now_s + 10.0
            since_s = busy_until_s
    assert 0 < exchanges * 10.0 <= 3600 / 6


def costs(found: Price, s: float, *victims: str) -> None:
    assert found.s == pytest.approx(s) and found.victims == victims


# Nobody has asked for it yet; with OLD an exchange and back takes 4 + 6 s.
ANY = replace(WANTED, demand_per_s=0.0)


def test_free_room_costs_nothing_and_an_idle_model_that_nobody_wants_neither() -> None:
    assert price(ANY, [OLD], TWO, NOW) == Price()
    assert price(ANY, [OLD], Limits(), NOW) == Price(0.0, ("old",))


def test_room_costs_the_end_of_what_runs_there() -> None:
    # Three that end at random moments after 2 s in the mean: 2 x (1 + 1/2 + 1/3).
    busy = replace(OLD, users=3, request_s=2.0)
    costs(price(ANY, [busy], Limits(), NOW), 2 * 11 / 6, "old")


def test_room_costs_those_who_ask_for_the_yielding_model_while_it_is_away() -> None:
    found = price(ANY, [replace(OLD, demand_per_s=0.5)], Limits(), NOW)
    costs(found, 0.5 * 10 * 10, "old")  # five requests that wait 10 s each
    busy = replace(OLD, name="busy", demand_per_s=9.0, users=9, request_s=1.0, used_at_s=NOW)
    assert price(ANY, [busy, OLD], TWO, NOW) == Price(0.0, ("old",)), "the idle one goes"


def test_room_that_is_there_later_costs_the_wait_and_none_is_none() -> None:
    kept = replace(NEW, demand_per_s=0.15)
    waits_s = 60.0 * log2(1.5)
    costs(price(ANY, [kept], Limits(), NOW), waits_s + 0.15 * 10 * 10, "new")
    busy = replace(NEW, demand_per_s=0.1, users=1)
    costs(price(ANY, [busy], Limits(), NOW), KEPT_UNTIL - NOW + 0.1 * 10 * 10, "new")
    costs(price(ANY, [replace(OLD, moving=True)], Limits(), NOW), 0.5, "old")
    assert price(ANY, [replace(OLD, pinned=True)], Limits(), NOW) == Price(None)
    assert price(replace(ANY, share=1.0), [], Limits(), NOW) == Price(None)
