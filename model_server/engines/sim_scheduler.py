"""The simulator's scheduler: what goes into the next step. No clock, no I/O: `plan`, let the time pass, `apply`.

As vLLM's V1 scheduler: continuous batching; prompts in chunks within a budget of tokens, after the streams that
decode; the lowest rank gives its blocks up when there are none left, and computes anew later.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Generic, TypeVar

from model_server.engines.sim_kv import KvCache
from model_server.engines.sim_sequence import Phase, Sequence
from model_server.engines.sim_settings import SimSettings

S = TypeVar("S", bound=Sequence)


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """What one step computes: the next token of each of `decodes`, and so many tokens of each of `prefills`."""

    decodes: list[S]
    prefills: list[tuple[S, int]]

    @property
    def prefill_tokens(self) -> int:
        """Tokens of prompts."""
        return sum(count for _, count in self.prefills)


def step_seconds(settings: SimSettings, step: Step[S]) -> float:
    """How long a step takes."""
    decoding_ms = settings.step_base_ms + settings.step_per_stream_ms * len(step.decodes)
    return decoding_ms / 1000 + step.prefill_tokens / settings.prefill_tokens_per_second


class Scheduler(Generic[S]):
    """Sequences that wait and that run, both in order of rank, and the KV cache that they share."""

    def __init__(self, settings: SimSettings) -> None:
        self._max_streams = settings.max_streams
        self._max_batched_tokens = settings.max_batched_tokens
        self._block_tokens = settings.block_tokens
        self._prefix_cache = settings.prefix_cache
        self._kv = KvCache(settings.kv_blocks)
        self._arrivals = 0
        self.waiting: list[S] = []
        self.running: list[S] = []
        self.preemptions = 0

    @property
    def kv_usage(self) -> float:
        """Share of the blocks that sequences hold."""
        return self._kv.used / self._kv.blocks

    def add(self, sequence: S) -> None:
        """A new sequence, which waits."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        sequence.phase = Phase.WAITING
        insort(self.waiting, sequence, key=_rank)

    def end(self, sequence: S) -> None:
        """A sequence has ended or is given up: its blocks are free at once. Ending it twice is fine."""
        if sequence.phase is Phase.RUNNING:
            self._remove(self.running, sequence)
            self._release(sequence)
        elif sequence.phase is Phase.WAITING:
            self._remove(self.waiting, sequence)
        sequence.phase = Phase.ENDED

    def plan(self) -> Step[S] | None:
        """The next step; None when there is nothing to do. Books the blocks that the step needs."""
        preemptions = self.preemptions
        decodes, longer = self._plan_decodes()
        budget = self._max_batched_tokens - len(decodes)
        prefills: list[tuple[S, int]] = []
        for sequence in longer:
            if budget > 0 and sequence.phase is Phase.RUNNING:
                count = min(len(sequence.tokens) - sequence.computed, budget)
                if self._make_room(sequence, count):
                    prefills.append((sequence, count))
                    budget -= count
        if self.preemptions == preemptions:
            self._admit(prefills, budget)
        else:
            decodes = [sequence for sequence in decodes if sequence.phase is Phase.RUNNING]
        return Step(decodes, prefills) if decodes or prefills else None

    def apply(self, step: Step[S]) -> list[S]:
        """The step is done: those whose tokens are all computed now, each of which gets its next token."""
        ready: list[S] = []
        size = self._block_tokens
        for sequence in step.decodes:
            if sequence.phase is Phase.RUNNING:
                sequence.computed += 1
                if sequence.computed % size == 0:
                    self._commit(sequence)
                ready.append(sequence)
        for sequence, count in step.prefills:
            if sequence.phase is Phase.RUNNING:
                sequence.computed += count
                self._commit(sequence)
                if sequence.computed == len(sequence.tokens):
                    ready.append(sequence)
        return ready

    def _plan_decodes(self) -> tuple[list[S], list[S]]:
        """Those that compute one token, and those that have more to compute."""
        decodes: list[S] = []
        longer: list[S] = []
        running = self.running
        size = self._block_tokens
        place = 0
        # By index: making room shortens the list from its end.
        while place < len(running):
            sequence = running[place]
            place += 1
            if len(sequence.tokens) - sequence.computed > 1:
                longer.append(sequence)
            elif sequence.computed < sequence.blocks * size or self._make_room(sequence, 1):
                decodes.append(sequence)
        return decodes, longer

    def _make_room(self, sequence: S, count: int) -> bool:
        """Blocks for so many tokens more, taken from those of lower rank; False if it had to give up its own."""
        missing = self._missing(sequence, count)
        while missing > 0 and not self._kv.reserve(missing):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.blocks += max(missing, 0)
        return True

    def _missing(self, sequence: S, count: int) -> int:
        return -(-(sequence.computed + count) // self._block_tokens) - sequence.blocks

    def _preempt(self, sequence: S) -> None:
        self._remove(self.running, sequence)
        self._release(sequence)
        sequence.phase = Phase.WAITING
        insort(self.waiting, sequence, key=_rank)
        self.preemptions += 1

    def _admit(self, prefills: list[tuple[S, int]], budget: int) -> None:
        """Let those that wait in, in order, until one does not fit."""
        while self.waiting and budget > 0 and len(self.running) < self._max_streams:
            sequence = self.waiting[0]
            self._take_cached(sequence)
            count = min(len(sequence.tokens) - sequence.computed, budget)
            missing = self._missing(sequence, count)
            if not self._kv.reserve(missing):
                self._release(sequence)
                return
            sequence.blocks += missing
            if sequence.cached_tokens < 0:
                sequence.cached_tokens = sequence.computed
            del self.waiting[0]
            sequence.phase = Phase.RUNNING
            insort(self.running, sequence, key=_rank)
            prefills.append((sequence, count))
            budget -= count

    def _take_cached(self, sequence: S) -> None:
        """Hold what the cache has of it, short of its last token, which must be computed to get the next."""
        if not self._prefix_cache or not sequence.reads_cache:
            return
        most = (len(sequence.tokens) - 1) // self._block_tokens
        sequence.hash_blocks(most)
        hits = self._kv.match(sequence.hashes[:most])
        self._kv.share(sequence.hashes[:hits])
        sequence.blocks = sequence.shared = hits
        sequence.computed = hits * self._block_tokens

    def _commit(self, sequence: S) -> None:
        full = sequence.computed // self._block_tokens
        if not self._prefix_cache or full <= sequence.shared:
            return
        sequence.hash_blocks(full)
        for known in sequence.hashes[sequence.shared : full]:
            self._kv.commit(known)
        sequence.shared = full

    def _release(self, sequence: S) -> None:
        self._kv.release(sequence.hashes[: sequence.shared], sequence.blocks - sequence.shared)
        sequence.blocks = sequence.shared = sequence.computed = 0

    def _remove(self, ordered: list[S], sequence: S) -> None:
        del ordered[bisect_left(ordered, sequence.rank, key=_rank)]
