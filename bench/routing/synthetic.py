"""Makes traces up, in the form of the given one and unlike it: what constants are judged on, so that they are not the
given trace's. `python -m bench.routing.synthetic KIND --load 10 --seconds 300 --seed 1 >FILE`

Each kind stresses what the given trace has not. Lengths are lognormal; all is decided by the seed.
"""

import argparse
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count

from bench.routing.job import BLOCK_TOKENS
from bench.routing.trace import Record

# What a token of an answer takes about: when the next turn can come.
_TOKEN_S = 0.02


class _Maker:
    """Random numbers, and ids for new blocks."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._ids = count()

    def blocks(self, tokens: int) -> tuple[int, ...]:
        """New ones, for so many tokens."""
        return tuple(next(self._ids) for _ in range(tokens // BLOCK_TOKENS))

    def length(self, median: float, spread: float = 0.8, most: int = 100_000) -> int:
        """Lognormal."""
        return max(2, min(most, round(median * math.exp(self.rng.gauss(0.0, spread)))))

    def times_s(self, per_s: float, seconds: float) -> Iterator[float]:
        """Poisson arrivals."""
        at_s = 0.0
        while (at_s := at_s + self.rng.expovariate(per_s)) < seconds:
            yield at_s


def agents(load: float, seconds: float, seed: int) -> list[Record]:
    """Agents at work: five kinds with 4,000 to 16,000 tokens of instructions and tools, some twelve short answers each,
    the context grown by what a tool returned, which is often long; the next call comes as soon as the tool is done."""
    make, turns, found = _Maker(seed), 12.0, []
    kinds = [make.blocks(make.rng.randint(8, 32) * BLOCK_TOKENS) for _ in range(5)]
    # Some are under way when it begins.
    before_s = 60.0
    for start_s in make.times_s(load / turns, seconds + before_s):
        at_s, said = start_s - before_s, make.rng.choices(kinds, (8, 4, 2, 1, 1))[0]
        tokens = len(said) * BLOCK_TOKENS + make.length(600)
        while True:
            said = said + make.blocks(tokens - len(said) * BLOCK_TOKENS)
            answer = make.length(120)
            if 0.0 <= at_s < seconds:
                found.append(Record(round(at_s * 1e3), tokens, answer, said))
            at_s += answer * _TOKEN_S + make.length(1500, 1.0) / 1e3
            tokens += answer + make.length(700, 1.2, 12_000)
            if tokens > 60_000 or make.rng.random() < 1 / turns:
                break
    return found


def documents(load: float, seconds: float, seed: int) -> list[Record]:
    """Questions about documents: 400 of them, median 12,000 tokens, asked for by Zipf's law; more than caches hold, and
    the favourites change with time."""
    make, found = _Maker(seed), []
    shelf = [make.blocks(make.length(12_000, 0.7, 60_000)) for _ in range(400)]
    weights = [1 / (place + 1) for place in range(len(shelf))]
    for at_s in make.times_s(load, seconds):
        place = make.rng.choices(range(len(shelf)), weights)[0]
        said, asked = shelf[(place + int(at_s / 60.0) * 3) % len(shelf)], make.length(100)
        tokens = len(said) * BLOCK_TOKENS + asked
        found.append(Record(round(at_s * 1e3), tokens, make.length(180), said + make.blocks(asked)))
    return found


def reasoning(load: float, seconds: float, seed: int) -> list[Record]:
    """Short questions and long answers, median 1,500 tokens with a heavy tail: nothing is shared, batches are full."""
    make, found = _Maker(seed), []
    for at_s in make.times_s(load, seconds):
        tokens = make.length(400, 0.9, 8_000)
        found.append(Record(round(at_s * 1e3), tokens, make.length(1500, 0.9, 8_000), make.blocks(tokens)))
    return found


def diurnal(load: float, seconds: float, seed: int) -> list[Record]:
    """Chats whose load swings between nothing and twice the mean over a minute and a half; some begin with up to
    100,000 tokens."""
    make, turns, period_s, found = _Maker(seed), 4.0, 90.0, []
    for start_s in make.times_s(2 * load / turns, seconds):
        if make.rng.random() > (1 - math.cos(2 * math.pi * start_s / period_s)) / 2:
            continue
        at_s, tokens = start_s, 0
        said: tuple[int, ...] = ()
        if make.rng.random() < 0.05:
            tokens = make.length(40_000, 0.6)
        while at_s < seconds:
            tokens += make.length(1500, 1.0)
            said = said + make.blocks(tokens - len(said) * BLOCK_TOKENS)
            answer = make.length(300)
            found.append(Record(round(at_s * 1e3), tokens, answer, said))
            at_s += answer * _TOKEN_S + make.rng.expovariate(1 / 12.0)
            tokens += answer
            if make.rng.random() < 1 / turns:
                break
    return found


def batches(load: float, seconds: float, seed: int) -> list[Record]:
    """Arrivals in clumps: of one to forty requests of one moment, lengths from 200 to 50,000 tokens, no sessions; each
    clump has a beginning of its own of 2,000 tokens in common."""
    make, mean, found = _Maker(seed), 8.0, []
    for at_s in make.times_s(load / mean, seconds):
        size = min(40, 1 + int(make.rng.expovariate(1 / (mean - 0.5))))
        shared = make.blocks(4 * BLOCK_TOKENS)
        for _ in range(size):
            own = make.length(4_000, 1.2, 50_000)
            said = shared + make.blocks(own)
            found.append(Record(round(at_s * 1e3), len(shared) * BLOCK_TOKENS + own, make.length(250), said))
    return found


def reshuffled(lines: Sequence[Record], seed: int) -> list[Record]:
    """A hold-out of a trace: its conversations as they are, each moved to another time as a whole, so that no moment's
    load, no clump of arrivals and no neighbourhood is the trace's."""
    rng, span = random.Random(seed), max(1, lines[-1].timestamp - lines[0].timestamp)
    moved: dict[int, int] = {}
    found: list[Record] = []
    for each in lines:
        # A conversation is told by its second block: the first is often everybody's.
        root = each.hash_ids[min(1, len(each.hash_ids) - 1)] if each.hash_ids else -1 - len(found)
        by = moved.setdefault(root, rng.randrange(span))
        found.append(replace(each, timestamp=(each.timestamp + by) % span))
    return found


KINDS: dict[str, Callable[[float, float, int], list[Record]]] = {
    "agents": agents,
    "documents": documents,
    "reasoning": reasoning,
    "diurnal": diurnal,
    "batches": batches,
}


def make(kind: str, load: float, seconds: float, seed: int) -> list[Record]:
    """A trace of that kind with `load` requests a second, in order of arrival. KeyError for a kind that is none."""
    found = sorted(KINDS[kind](load, seconds, seed), key=lambda each: each.timestamp)
    # Conversations make the load only about right.
    factor = len(found) / (load * seconds)
    return [replace(each, timestamp=round(each.timestamp * factor)) for each in found]


def main() -> None:
    """Write one to standard output."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing.synthetic", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--load", type=float, default=10.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    sys.stdout.writelines(each.line() for each in make(args.kind, args.load, args.seconds, args.seed))


if __name__ == "__main__":
    main()
