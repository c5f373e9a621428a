import random

import pytest

from router.waiting import Waiting


@pytest.mark.parametrize(
    ("came", "order"),
    [
        ([(0, None), (0, None), (0, None)], [0, 1, 2]),
        ([(1, None), (0, None), (-1, None)], [2, 1, 0]),
        ([(0, 9.0), (0, 3.0), (0, 5.0)], [1, 2, 0]),
        ([(0, None), (0, 1e9)], [1, 0]),
        ([(1, 1.0), (0, None), (0, 5.0)], [2, 1, 0]),
        ([(0, 5.0), (0, 5.0), (0, 4.0)], [2, 0, 1]),
    ],
    ids=["arrival", "priority", "deadline", "a deadline before none", "priority before deadline", "ties by arrival"],
)
def test_order(came: list[tuple[int, float | None]], order: list[int]) -> None:
    waiting = Waiting[int]()
    for i, (priority, deadline_s) in enumerate(came):
        waiting.add(priority, deadline_s, 0.0, i)
    found = []
    while (first := waiting.first) is not None:
        found.append(first.who)
        waiting.remove(first)
    assert found == order


def test_a_newcomer_knows_how_many_are_ahead() -> None:
    waiting = Waiting[str]()
    for priority, deadline_s in [(0, 5.0), (0, None), (2, 1.0)]:
        waiting.add(priority, deadline_s, 0.0, "")
    asked = [(-1, None), (0, 4.0), (0, 5.0), (0, None), (1, None), (2, 0.5), (2, None)]
    assert [waiting.ahead_of(*each) for each in asked] == [0, 0, 1, 2, 2, 2, 3]


def test_leaving_in_any_order() -> None:
    rng, waiting = random.Random(1), Waiting[int]()
    places = [waiting.add(rng.randrange(3), rng.choice([None, 1.0, 2.0]), float(i), i) for i in range(50)]
    rng.shuffle(places)
    for left, place in enumerate(places):
        assert len(waiting) == 50 - left
        waiting.remove(place)
        waiting.remove(place)
    assert (waiting.first, waiting.last, waiting.oldest_since_s()) == (None, None, None)


def test_age_and_next_in_turn() -> None:
    waiting = Waiting[str]()
    late = waiting.add(1, None, 10.0, "late")
    early = waiting.add(0, None, 20.0, "early")
    assert waiting.oldest_since_s() == 10.0
    assert waiting.after(early) is late
    assert waiting.after(late) is None
