from dataclasses import replace

from bench.routing.suite import Asked, Cell, cells, run
from bench.routing.workloads import Setting


def test_the_trace_is_run_around_its_highest_load_and_others_at_theirs() -> None:
    asked = Asked(policies=("stoker", "llm-d"), routers=(1, 8), seeds=(1, 2))
    assert {cell.load for cell in cells("sessions", asked, 122.57)} == {122.57}
    trace = list(cells("trace", asked, 8.54))
    assert sorted({cell.load for cell in trace}) == [5.98, 7.26, 8.54, 9.82, 11.1]
    assert len(set(trace)) == len(trace) == 5 * 2 * 2 * 2
    assert {cell.load for cell in cells("trace", replace(asked, curve=(1.0,)), 8.54)} == {8.54}


def test_a_run_depends_on_its_cell_and_not_on_the_settings_load_and_seed(setting: Setting) -> None:
    cell = Cell("sessions", 10.0, "dynamo", 1, 2)
    assert run(cell, setting) == run(cell, replace(setting, load=3.0, seed=5))
    assert run(cell, setting).figures != run(replace(cell, seed=1), setting).figures
