"""Results on disk: one JSON file with what was run and every figure."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.routing.figures import Figures
from bench.routing.policies import POLICIES
from bench.routing.speeds import Speeds
from bench.routing.suite import Cell, Result
from bench.routing.workloads import WORKLOADS


def write(path: Path, results: Iterable[Result], speeds: Speeds, about: dict[str, Any]) -> None:
    """Write the JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"about": about, "speeds": asdict(speeds), "results": [plain(result) for result in results]}
    path.write_text(json.dumps(data, indent=1) + "\n")


def read(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """The results, and what the file says about them."""
    data = json.loads(path.read_text())
    return [result_of(each) for each in data["results"]], data["about"]


def in_order(results: Iterable[Result]) -> list[Result]:
    """By workload, load, routers, policy and seed."""
    workloads, policies = list(WORKLOADS), list(POLICIES)

    def place(result: Result) -> tuple[float, ...]:
        cell = result.cell
        return workloads.index(cell.workload), cell.load, cell.routers, policies.index(cell.policy), cell.seed

    return sorted(results, key=place)


def middle_loads(results: Iterable[Result]) -> dict[str, float]:
    """Each workload's load, the middle one where it has several: the one the others lie around."""
    loads: dict[str, set[float]] = {}
    for each in results:
        loads.setdefault(each.cell.workload, set()).add(each.cell.load)
    return {name: sorted(each)[len(each) // 2] for name, each in loads.items()}


def plain(result: Result) -> dict[str, Any]:
    """A result as JSON has it."""
    return {**asdict(result.cell), "figures": asdict(result.figures)}


def result_of(data: dict[str, Any]) -> Result:
    """A result from JSON."""
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data["figures"].items()
    }
    return Result(Cell(**{name: value for name, value in data.items() if name != "figures"}), Figures(**given))
