"""Results on disk: one JSON file with what was run and every figure."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.routing.figures import Figures
from bench.routing.speeds import Speeds
from bench.routing.suite import Result


def write(path: Path, results: Iterable[Result], speeds: Speeds, about: dict[str, Any]) -> None:
    """Write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"about": about, "speeds": asdict(speeds), "results": [asdict(result) for result in results]}
    path.write_text(json.dumps(data, indent=1) + "\n")


def read(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """The results, and what the file says about them."""
    data = json.loads(path.read_text())
    results = []
    for each in data["results"]:
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in each["figures"].items()
        }
        results.append(Result(**{**each, "figures": Figures(**given)}))
    return results, data["about"]
