"""Reads a request trace: one JSON object a line with timestamp (ms), input_length, output_length and hash_ids.

The form of the Mooncake traces (FAST'25). `hash_ids` has one id for each 512-token block of the prompt; equal leading
ids are a shared prefix. The last block may be incomplete, and is then in nobody's cache.
"""

import json
from pathlib import Path

from bench.routing.job import BLOCK_TOKENS, Chains, Job


def read(path: Path, speedup: float = 1.0) -> list[Job]:
    """The trace's requests, arriving `speedup` times as fast. Raises ValueError for a line that is none."""
    chains, sessions = Chains(), Sessions()
    jobs = []
    for number, line in enumerate(path.read_text().splitlines()):
        try:
            record = json.loads(line)
            at_ms, prompt, output = record["timestamp"], record["input_length"], record["output_length"]
            whole = record["hash_ids"][: prompt // BLOCK_TOKENS]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number + 1}: not a request of a trace: {error!r}") from error
        chain = chains.of(whole)
        session = sessions.of(chain)
        jobs.append(Job(number, at_ms / 1e3 / speedup, max(1, prompt), max(1, output), chain, session))
    jobs.sort(key=lambda job: job.arrival_s)
    return jobs


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
