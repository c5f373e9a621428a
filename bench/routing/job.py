"""A request as a workload has it, and what became of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

# Tokens of one block whose content is known by its hash: the traces'.
BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Job:
    """One request. `chain`: its prompt's whole blocks, each number standing for the block and all before it."""

    number: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    chain: tuple[int, ...]
    session: str = ""
    model: str = "model"
    # The chain's blocks that are whole once the answer is there, for the session's next turn.
    answer_chain: tuple[int, ...] = ()


@dataclass(slots=True)
class Flight:
    """A job on its way. Times in seconds; None while it has not happened."""

    job: Job
    router: int = 0
    server: str = ""
    attempts: int = 0
    emitted: int = 0
    cached_tokens: int = 0
    queued_s: float = 0.0
    predicted_ms: float = 0.0
    dispatched_s: float = 0.0
    waited_ms: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    rejected: bool = False

    @property
    def ttft_s(self) -> float | None:
        """From arrival to the first token."""
        return None if self.first_s is None else self.first_s - self.job.arrival_s

    @property
    def itl_s(self) -> float | None:
        """Mean time between tokens; None while it has not ended, or with fewer than two."""
        if self.first_s is None or self.last_s is None or self.job.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.job.output_tokens - 1)


@dataclass(slots=True)
class Chains:
    """Numbers chains of blocks: equal numbers mean equal blocks and equal blocks before them."""

    _known: dict[tuple[int, object], int] = field(default_factory=dict)

    def of(self, blocks: Iterable[object], after: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The chain of `after` and these blocks."""
        known, chain = self._known, list(after)
        last = chain[-1] if chain else 0
        for block in blocks:
            last = known.setdefault((last, block), len(known) + 1)
            chain.append(last)
        return tuple(chain)
