from dataclasses import replace
from pathlib import Path

from bench.routing import results
from bench.routing.speeds import Speeds
from bench.routing.suite import Result


def test_results_come_back_from_disk(ran: list[Result], tmp_path: Path) -> None:
    results.write(tmp_path / "r.json", ran, Speeds(), {"seed": 1})
    assert results.read(tmp_path / "r.json") == (ran, {"seed": 1})


def test_the_load_in_the_middle_is_the_highest_one(ran: list[Result]) -> None:
    curve = [replace(ran[0], cell=replace(ran[0].cell, workload="trace", load=load)) for load in (11.1, 8.5, 6.0)]
    assert results.middle_loads([*ran, *curve]) == {"sessions": 10.0, "bursts": 10.0, "trace": 8.5}


def test_the_order_is_not_that_in_which_they_ended(ran: list[Result]) -> None:
    ordered = results.in_order(reversed(ran))
    assert ordered == results.in_order(ran)
    assert [each.cell.workload for each in ordered[:: len(ran) // 2]] == ["sessions", "bursts"]
    assert [each.cell.policy for each in ordered[:3]] == ["stoker", "round-robin", "least-outstanding"]
