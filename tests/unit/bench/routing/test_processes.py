import pytest

from bench.routing.highest import Highest
from bench.routing.processes import found
from bench.routing.results import in_order
from bench.routing.suite import Asked, Result
from bench.routing.workloads import Setting

ASKED = Asked(policies=("stoker", "dynamo"), seeds=(1, 2), highest={"sessions": 10.0, "bursts": 10.0})


def test_two_processes_find_what_one_finds(setting: Setting) -> None:
    alone = list(found(["sessions", "bursts"], setting, ASKED, 1))
    both = list(found(["sessions", "bursts"], setting, ASKED, 2))
    assert len(alone) == 2 * 2 * 2 * 2
    assert in_order(each for each in alone if isinstance(each, Result)) == in_order(
        each for each in both if isinstance(each, Result)
    )


def test_what_is_done_is_not_run_again(setting: Setting) -> None:
    ran = [each.cell for each in found(["bursts"], setting, ASKED, 1) if isinstance(each, Result)]
    rest = list(found(["bursts"], setting, ASKED, 1, done=set(ran[:-1])))
    assert [each.cell for each in rest if isinstance(each, Result)] == ran[-1:]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_load_that_is_not_known_is_looked_for_and_then_run_at(setting: Setting, processes: int) -> None:
    asked = Asked(policies=("stoker",), routers=(1,), highest={"bursts": 10.0})
    every = list(found(["reasoning", "bursts"], setting, asked, processes))
    (load,) = (each.load for each in every if isinstance(each, Highest))
    cells = [each.cell for each in every if isinstance(each, Result)]
    assert {(cell.workload, cell.load) for cell in cells} == {("reasoning", round(load, 2)), ("bursts", 10.0)}
