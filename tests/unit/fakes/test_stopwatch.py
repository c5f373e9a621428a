"""The tests' own stopwatch: what others have of the processors is left out, what this thread does is not."""

import time
from pathlib import Path

import pytest

from tests.fakes import stopwatch
from tests.fakes.stopwatch import Stopwatch


def test_who_blocks_or_computes_is_timed() -> None:
    watch = Stopwatch()
    time.sleep(0.05)
    assert watch.s > 0.04
    watch, computed_s = Stopwatch(), time.thread_time()
    while time.thread_time() < computed_s + 0.05:
        pass
    assert watch.s > 0.04


def test_what_the_thread_waited_for_a_processor_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedstat = tmp_path / "schedstat"
    monkeypatch.setattr(stopwatch, "_SCHEDSTAT", schedstat)
    schedstat.write_text("7000000000 1000000000 12\n")
    watch = Stopwatch()
    schedstat.write_text("9000000000 4000000000 20\n")
    assert watch.s == pytest.approx(-3.0, abs=0.5)
    schedstat.unlink()
    assert 0.0 <= Stopwatch().s < 0.5
