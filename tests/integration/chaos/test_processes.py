"""Processes that have several lives, as the faults give them."""

import sys
from pathlib import Path

import pytest

from tests.chaos.places import Place
from tests.chaos.processes import Process

pytestmark = pytest.mark.integration


def test_what_a_process_says_is_of_its_present_life(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "print('registered')"]
    process = Process("s", "server", "a", Place(), argv, tmp_path / "s.log")
    assert process.said() == ""
    process.start()
    assert process.wait(30) == 0 and process.said() == "registered\n"
    process.argv = [sys.executable, "-c", "print('starts')"]
    process.start()
    assert "registered" not in process.said()
    assert process.wait(30) == 0 and process.said() == "starts\n"
    assert process.log.read_text() == "registered\nstarts\n"
