from pathlib import Path

import pytest

from bench.routing.highest import Highest
from bench.routing.kept import Differs, Kept
from bench.routing.suite import Result

ABOUT = {"commit": "abc", "seed": 1}


def test_what_was_kept_is_there_when_the_run_goes_on(ran: list[Result], tmp_path: Path) -> None:
    kept = Kept.at(tmp_path / "new" / "kept.jsonl", ABOUT)
    kept.add(Highest("sessions", 10.0))
    for each in ran[:3]:
        kept.add(each)
    again = Kept.at(kept.path, ABOUT)
    assert again.results == kept.results == ran[:3]
    assert again.highest == kept.highest == {"sessions": 10.0}


def test_a_line_that_was_cut_off_is_run_again_and_spoils_no_other(ran: list[Result], tmp_path: Path) -> None:
    kept = Kept.at(tmp_path / "kept.jsonl", ABOUT)
    kept.add(ran[0])
    kept.add(ran[1])
    kept.path.write_text(kept.path.read_text()[:-20])
    again = Kept.at(kept.path, ABOUT)
    assert again.results == ran[:1]
    again.add(ran[2])
    assert Kept.at(kept.path, ABOUT).results == [ran[0], ran[2]]


def test_results_of_other_code_are_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    Kept.at(path, ABOUT)
    with pytest.raises(Differs, match="def"):
        Kept.at(path, {**ABOUT, "commit": "def"})
