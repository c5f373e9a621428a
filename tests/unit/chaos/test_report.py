"""The page says what passed, what failed and what was over its budget."""

from tests.chaos.faults import FAULTS
from tests.chaos.report import page
from tests.chaos.trial import Result


def result(**changes: object) -> Result:
    fields: dict[str, object] = {
        "fault": "1",
        "seed": "1-0",
        "control": False,
        "did": "SIGKILL zone-a-0",
        "streams": 200,
    }
    fields |= {"passed": 200, "touched": 20, "gap_s": 0.9, "touched_gap_s": 0.5, "wrong": (), "broken": ""}
    return Result(**(fields | changes))  # type: ignore[arg-type]


def test_what_passed() -> None:
    text = page([result(), result(seed="1-1", touched_gap_s=0.7)], ["- about"])
    row = "| 1 server killed | 2 of 2 | 34.2% | 400 of 400 | 99.05% | 40 | 0.60 / 0.70 | 2 |"
    assert row in text.splitlines()
    assert "What failed" not in text
    assert "Plain gRPC" not in text


def test_what_failed_is_told_with_its_seed() -> None:
    lost = result(passed=199, wrong=("client-3: lost 2",), touched_gap_s=2.5, broken="a counter is not 0")
    text = page([lost, result(control=True, passed=150)], [])
    assert "- 1, seed `1-0` (SIGKILL zone-a-0): 1 streams, such as client-3: lost 2; a counter is not 0" in text
    assert "| 0.00" not in text
    assert "2.50 / 2.50 **over**" in text
    assert "| 1 server killed | 0 of 1 | 150 of 200 | 50 (25.0%) |" in text


def test_what_was_not_tried_is_told() -> None:
    text = page([result()], [])
    assert "2 server frozen" in next(line for line in text.splitlines() if line.startswith("No trial yet"))
    assert "30, certificates" in text
    everything = page([result(fault=fault.number) for fault in FAULTS], [])
    assert "No trial yet" not in everything


def test_refusals_in_a_crowd_are_told() -> None:
    crowd = result(fault="26", seed="26-0", streams=600, passed=600, refused=180, refused_p99_ms=21.4)
    text = page([crowd, result(fault="26", seed="26-1", streams=600, passed=600, refused=20, refused_p99_ms=9.0)], [])
    assert "200 of 1200 streams were refused, typed and before their first token (p99 by trial: 21 ms, 9 ms)" in text
    assert "were refused" not in page([result()], [])
