"""The Makefile says each thing once: of two recipes for one target, make takes the last and only warns."""

import re
from collections import Counter
from pathlib import Path

MAKEFILE = (Path(__file__).resolve().parents[3] / "Makefile").read_text()
TARGETS = Counter(re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, re.MULTILINE))


def test_each_target_is_there_once() -> None:
    assert {target for target, times in TARGETS.items() if times > 1} == set()


def test_no_target_is_a_files_name_by_accident() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == set(TARGETS)


def test_help_shows_every_target() -> None:
    shown = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert shown == set(TARGETS)
