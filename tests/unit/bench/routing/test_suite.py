from dataclasses import replace
from pathlib import Path

import pytest

from bench.routing import page, plots, results
from bench.routing.speeds import Speeds
from bench.routing.suite import Asked, Result, bisected, suite
from bench.routing.workloads import Setting


@pytest.mark.parametrize("limit", [1.5, 7.0, 63.9])
def test_bisection_finds_the_limit(limit: float) -> None:
    found = bisected(lambda load: load <= limit, 1.0, 64.0, 1.02)
    assert found <= limit < found * 1.03


@pytest.fixture(scope="module")
def found() -> list[Result]:
    return list(suite(["sessions", "bursts"], Setting(Speeds(), 1.0, seconds=3.0), Asked(load=10.0)))


def test_results_come_back_from_disk(found: list[Result], tmp_path: Path) -> None:
    results.write(tmp_path / "r.json", found, Speeds(), {"seed": 1})
    assert results.read(tmp_path / "r.json") == (found, {"seed": 1})


def test_the_page_gets_tables_between_its_marks(found: list[Result], tmp_path: Path) -> None:
    path = tmp_path / "routing.md"
    path.write_text(f"before\n{page.BEGIN}\nformer\n{page.END}\nafter\n")
    page.write(path, found)
    page.write(path, found)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "former" not in text
    assert text.count("### sessions, 10.0 requests/s") == 1
    assert text.count("**stoker**") == 4


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "routing.md").write_text("nothing")
    with pytest.raises(ValueError, match="marks"):
        page.write(tmp_path / "routing.md", [])


def test_plots_are_drawn(found: list[Result], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trace = [replace(each, workload="trace") for each in found]
    paths = plots.draw(tmp_path, [*trace, *found])
    assert [path.name for path in paths] == ["routing-trace.png", "routing-workloads.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
