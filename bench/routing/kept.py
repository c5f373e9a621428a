"""A file of lines that grows while a run goes on, so that one that was stopped goes on where it was."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.routing.highest import Highest
from bench.routing.results import plain, result_of
from bench.routing.suite import Result


class Differs(ValueError):
    """The file is of other code or of another setting: its results and new ones are not of one table."""


@dataclass(slots=True)
class Kept:
    """A file of lines: what was run, then each result and each highest load that was found, as it ended."""

    path: Path
    results: list[Result] = field(default_factory=list)
    highest: dict[str, float] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, about: dict[str, Any]) -> "Kept":
        """Go on with the file, or begin it. Raises Differs if it was begun for something else."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"about": about}) + "\n")
        first, *lines = path.read_text().splitlines(keepends=True)
        if (its := json.loads(first)["about"]) != about:
            raise Differs(f"{path} was begun for {its}, this is {about}: remove it, or name another file")
        kept = cls(path)
        for line in lines:
            # The last one is without an end if writing it was cut off.
            if line.endswith("\n"):
                kept._take(json.loads(line))
        if lines and not lines[-1].endswith("\n"):
            path.write_text(first + "".join(lines[:-1]))
        return kept

    def add(self, found: Result | Highest) -> None:
        """Append it."""
        line = {"highest": asdict(found)} if isinstance(found, Highest) else plain(found)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        if "highest" in line:
            self.highest[line["highest"]["workload"]] = line["highest"]["load"]
        else:
            self.results.append(result_of(line))
