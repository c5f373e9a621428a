"""Of several processes a gauge must say how it adds up: by default each process has its own, under its process id."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]
# Only these forget a process that is gone.
OF_THE_LIVING = {"livesum", "livemax", "livemin", "livemostrecent"}


def gauges() -> Iterator[tuple[str, str]]:
    """Where each gauge of a router process is made, and its mode."""
    for package in ("router", "discovery", "stoker_common"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Gauge":
                    modes = [ast.literal_eval(each.value) for each in node.keywords if each.arg == "multiprocess_mode"]
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", (modes or [""])[0]


def test_every_gauge_says_how_processes_add_up() -> None:
    found = dict(gauges())
    assert found, "no gauge was found: does this test look in the right place?"
    assert not {where: mode for where, mode in found.items() if mode not in OF_THE_LIVING}
