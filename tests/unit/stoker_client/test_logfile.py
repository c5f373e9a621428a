"""The end of a log."""

from pathlib import Path

import pytest

from stoker_client.mesh.logfile import TAIL_BYTES, activity, last_lines

pytestmark = pytest.mark.unit


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_lines(log, 3) == []
    log.write_text("x" * 2 * TAIL_BYTES + "\n\none  \n\ntwo\n")
    assert last_lines(log, 2) == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"message": "loading weights", "level": "info"}', "loading weights"),
        ("plain", "plain"),
        ("3", "3"),
        ('"', "before"),
        ("", ""),
    ],
)
def test_activity(tmp_path: Path, line: str, says: str) -> None:
    log = tmp_path / "x.log"
    log.write_text(f"before\n{line}\n" if line else "")
    assert activity(log) == says
