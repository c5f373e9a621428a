"""What clients write down as it happens: one JSON object a line, of one of these kinds."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True, slots=True)
class Asked:
    """A request was sent for the first time. `at_s` as in all kinds: CLOCK_MONOTONIC, one clock for a whole machine."""

    stream: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Got:
    """A part of an answer arrived."""

    stream: str
    at_s: float
    index: int
    token_ids: list[int]
    text: str
    server: str
    epoch: str


@dataclass(frozen=True, slots=True)
class Broke:
    """A call failed. `again`: the client goes on through another router, with what it has."""

    stream: str
    at_s: float
    router: str
    code: str
    reason: str
    message: str
    again: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer came to its end. `attempts`: server, epoch, status code and tokens of each."""

    stream: str
    at_s: float
    completion_tokens: int
    exactness: str = ""
    attempts: list[list[Any]] = field(default_factory=list)


Event = Asked | Got | Broke | Ended
_KINDS: dict[str, type[Asked] | type[Got] | type[Broke] | type[Ended]] = {
    kind.__name__: kind for kind in (Asked, Got, Broke, Ended)
}


def note(file: TextIO, event: Event) -> None:
    """Write one event."""
    file.write(json.dumps({"kind": type(event).__name__, **asdict(event)}, ensure_ascii=False) + "\n")


def read(files: Iterable[Path]) -> Iterator[Event]:
    """Every event of these files. A line that its writer did not finish, because it was killed, is left out."""
    for path in files:
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                fields = json.loads(line)
                yield _KINDS[fields.pop("kind")](**fields)
