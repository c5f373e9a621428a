from dataclasses import replace

from bench.routing.seeds import by_seed
from bench.routing.suite import Result


def test_runs_that_differ_in_their_seed_are_one_with_a_mean(ran: list[Result]) -> None:
    first, other = ran[0], ran[1]
    again = replace(
        first,
        cell=replace(first.cell, seed=2),
        figures=replace(first.figures, moved=first.figures.moved + 4, ttft_ms=(10.0, 20.0, 30.0)),
    )
    one, two = by_seed([again, other, first])
    assert one.results == (first, again) and two.results == (other,)
    assert (one.workload, one.load, one.policy, one.routers) == ("sessions", 10.0, first.cell.policy, 1)
    assert one.values(lambda its: its.moved) == [first.figures.moved, first.figures.moved + 4]
    assert one.mean(lambda its: its.moved) == first.figures.moved + 2
    assert one.means(lambda its: its.ttft_ms)[2] == (first.figures.ttft_ms[2] + 30.0) / 2
