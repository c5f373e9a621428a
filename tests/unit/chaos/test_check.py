"""The chaos checker finds what it is there to find."""

from collections.abc import Callable

import pytest

from tests.chaos.check import Expected, judge, unfaulted
from tests.chaos.history import Asked, Broke, Ended, Event, Got
from tests.chaos.report import wilson
from tests.chaos.script import Load, script

WANTED = Expected((5, 6, 7, 8, 9), "abcde")


def history() -> list[Event]:
    """A stream without fault, a token a second."""
    events: list[Event] = [Got("s", float(i), i, [WANTED.token_ids[i]], WANTED.text[i], "a", "1") for i in range(5)]
    return [*events, Ended("s", 5.0, 5)]


def verdict_of(events: list[Event]) -> str:
    (verdict,) = judge(events, {"s": WANTED})
    return verdict.wrong


def test_what_is_right_passes() -> None:
    (verdict,) = judge(history(), {"s": WANTED})
    assert verdict.wrong == ""
    assert verdict.gap_s == 1.0
    assert not verdict.resumed


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda events: events.pop(2), "lost 1"),
        (lambda events: events.insert(3, events[2]), "repeated 1"),
        (lambda events: events.insert(1, events.pop(2)), "token 1"),
        (lambda events: events.__setitem__(1, Got("s", 1.0, 1, [3], "b", "a", "1")), "other tokens"),
        (lambda events: events.__setitem__(1, Got("s", 1.0, 1, [6], "x", "a", "1")), "the text is not"),
        (lambda events: events.__delitem__(slice(3, 5)), "lost 2 tokens at its end"),
        (lambda events: events.pop(), "ended 0 times"),
        (lambda events: events.append(Ended("s", 6.0, 5)), "ended 2 times"),
        (lambda events: events.__setitem__(5, Ended("s", 5.0, 7)), "usage counts 7"),
        (lambda events: events.append(Got("s", 6.0, 5, [1], "", "a", "1")), "6 tokens"),
        (lambda events: events.__setitem__(5, Broke("s", 5.0, "r", "UNAVAILABLE", "X", "no", False)), "failed after"),
        (lambda events: events.clear(), "lost 5 tokens"),
    ],
)
def test_what_is_wrong_is_found(damage: Callable[[list[Event]], object], says: str) -> None:
    events = history()
    damage(events)
    assert says in verdict_of(events)


async def test_the_expectation_does_not_depend_on_how_it_is_made() -> None:
    asks = script("seed", "client", Load(streams=20, shortest_tokens=5, longest_tokens=9))
    together = await unfaulted(asks)
    for ask in asks[:4]:
        assert (await unfaulted([ask]))[ask.name] == together[ask.name]
        assert len(together[ask.name].token_ids) == ask.max_tokens


def test_wilson_at_known_points() -> None:
    assert wilson(0, 0) == 0.0
    assert wilson(10, 10) == pytest.approx(0.7225, abs=1e-4)
    assert wilson(2000, 2000) == pytest.approx(0.99808, abs=1e-5)
    assert wilson(9, 10) == pytest.approx(0.5958, abs=1e-4)


def refused(after_s: float, reason: str = "QUEUE_FULL") -> list[Event]:
    broke = Broke("s", 1.0 + after_s, "r", "RESOURCE_EXHAUSTED", reason, "come back later", False)
    return [Asked("s", 1.0), broke]


def test_a_refusal_for_want_of_room_is_right_only_where_it_may_be_and_if_it_is_fast() -> None:
    (verdict,) = judge(refused(0.02), {"s": WANTED}, refusable=True)
    assert verdict.wrong == ""
    assert verdict.refused_s == pytest.approx(0.02)
    (verdict,) = judge(refused(0.02), {"s": WANTED})
    assert "failed before its first token" in verdict.wrong
    (verdict,) = judge(refused(3.0), {"s": WANTED}, refusable=True)
    assert "refused only after 3.00 s" in verdict.wrong


@pytest.mark.parametrize("events", [refused(0.02, "NO_ENDPOINT"), [*history()[:2], *refused(0.02)]])
def test_what_fails_otherwise_or_later_is_wrong_also_in_a_crowd(events: list[Event]) -> None:
    (verdict,) = judge(events, {"s": WANTED}, refusable=True)
    assert "failed" in verdict.wrong
    assert verdict.refused_s is None
