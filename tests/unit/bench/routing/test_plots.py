from dataclasses import replace
from pathlib import Path

import pytest

from bench.routing import plots
from bench.routing.suite import Result


def test_plots_are_drawn(ran: list[Result], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trace = [replace(each, cell=replace(each.cell, workload="trace")) for each in ran]
    paths = plots.draw(tmp_path, [*trace, *ran])
    assert [path.name for path in paths] == ["routing-trace.png", "routing-workloads.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
