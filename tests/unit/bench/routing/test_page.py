from dataclasses import replace
from pathlib import Path

import pytest

from bench.routing import page
from bench.routing.suite import Result

ABOUT = {"commit": "abc", "seconds": 3.0}


def test_the_page_gets_tables_between_its_marks(ran: list[Result], tmp_path: Path) -> None:
    path = tmp_path / "routing.md"
    path.write_text(f"before\n{page.BEGIN}\nformer\n{page.END}\nafter\n")
    page.write(path, ran, ABOUT)
    page.write(path, ran, ABOUT)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "former" not in text
    assert text.count("Of abc; 3 s of arrivals") == 1
    assert text.count("### sessions, 10.0 requests/s") == 1
    assert text.count("**stoker**") == 4


def test_several_seeds_are_a_mean_and_a_spread(ran: list[Result]) -> None:
    again = [
        replace(each, cell=replace(each.cell, seed=2), figures=replace(each.figures, good=each.figures.good // 2))
        for each in ran
    ]
    text = page.tables([*ran, *again])
    assert text.count("Seeds 1, 2.") == 2 and text.count("**stoker**") == 4
    assert "| 75.0% (50.0% to 100.0%) |" in text


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "routing.md").write_text("nothing")
    with pytest.raises(ValueError, match="marks"):
        page.write(tmp_path / "routing.md", [], ABOUT)
