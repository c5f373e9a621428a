"""Reads a request trace: one JSON object a line with timestamp (ms), input_length, output_length and hash_ids.

The form of the Mooncake traces (FAST'25). `hash_ids` has one id for each 512-token block of the prompt; equal leading
ids are a shared prefix. The last block may be incomplete, and is then in nobody's cache.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.routing.job import BLOCK_TOKENS, Chains, Job


@dataclass(frozen=True, slots=True)
class Record:
    """A line of a trace, under the names it has there. Lengths in tokens, the timestamp in ms."""

    timestamp: int
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]

    def line(self) -> str:
        """As a line of a file."""
        return json.dumps(asdict(self)) + "\n"


def records(path: Path) -> list[Record]:
    """The lines of a file. Raises ValueError for a line that is no request."""
    found = []
    for number, line in enumerate(path.read_text().splitlines()):
        try:
            read = json.loads(line)
            lengths = int(read["timestamp"]), int(read["input_length"]), int(read["output_length"])
            found.append(Record(*lengths, tuple(read["hash_ids"])))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number + 1}: not a request of a trace: {error!r}") from error
    return found


def read(path: Path, speedup: float = 1.0) -> list[Job]:
    """The file's requests, arriving `speedup` times as fast. Raises ValueError for a line that is none."""
    return jobs(records(path), speedup)


def jobs(lines: Iterable[Record], speedup: float = 1.0) -> list[Job]:
    """The requests of a trace, arriving `speedup` times as fast, in order of arrival."""
    chains, sessions = Chains(), Sessions()
    found = []
    for number, each in enumerate(lines):
        chain = chains.of(each.hash_ids[: each.input_length // BLOCK_TOKENS])
        at_s, prompt, output = each.timestamp / 1e3 / speedup, max(1, each.input_length), max(1, each.output_length)
        found.append(Job(number, at_s, prompt, output, chain, sessions.of(chain)))
    found.sort(key=lambda job: job.arrival_s)
    return found


class Sessions:
    """Names conversations, which a trace does not: a prompt goes on with the longest earlier one it has whole in it."""

    def __init__(self) -> None:
        self._of: dict[int, str] = {}
        self._count = 0

    def of(self, chain: tuple[int, ...]) -> str:
        """The session of a prompt. One block alone is a common beginning, and no conversation."""
        for block in reversed(chain[1:]):
            if known := self._of.get(block):
                break
        else:
            self._count += 1
            known = f"session-{self._count}"
        if len(chain) > 1:
            self._of[chain[-1]] = known
        return known
