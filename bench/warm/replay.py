"""What today's predictions would have been on recorded requests: `python -m bench.warm.replay FILE...`.

The rows that `python -m bench.warm` wrote say when each request was sent, when its first token came and when it ended,
what of its prompt was cached, and what the engine said of its time. The router's own code (router/first_tokens.py) is
told of them in that order and predicts each before it knows what became of it, so that it can be worked on without the
machine that the rows are from. What servers said of their rate is taken from what was predicted then.
"""

import argparse
import gzip
import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from bench.warm import figures
from bench.warm.figures import WARM_UP, Window
from bench.warm.load import Row
from router.first_tokens import Expectation, FirstTokens
from router.ledger import NOTHING, Booking, Ledger
from router.scorers import Cost
from stoker.v1 import inference_pb2

# Between two rounds: none of the one before is under way then.
_PAUSE_S = 0.5
_DISPATCH, _FIRST_TOKEN, _END = range(3)


@dataclass(frozen=True, slots=True)
class Told:
    """One request and what became of it, in seconds since its policy's first round began."""

    row: Row
    at_s: float

    @property
    def first_s(self) -> float:
        """When the router had its first token."""
        return self.at_s + float(self.row["actual_ms"]) / 1e3

    @property
    def end_s(self) -> float:
        """When it had its last one."""
        return self.first_s + float(self.row.get("itl_ms", 0.0)) * max(0, int(self.row["tokens"]) - 1) / 1e3


def told(rows: Sequence[Row]) -> dict[str, list[Told]]:
    """The requests by policy, each policy's rounds one after the other."""
    begins: dict[tuple[str, str], float] = {}
    over: dict[str, float] = {}
    for row in rows:
        if "window" in row:
            begins[row["policy"], row["window"]] = over.get(row["policy"], 0.0)
            over[row["policy"]] = begins[row["policy"], row["window"]] + row["seconds"] + _PAUSE_S
    found: dict[str, list[Told]] = {}
    for row in rows:
        if "terms" in row:
            found.setdefault(row["policy"], []).append(Told(row, begins[row["policy"], row["at"]] + row["began_s"]))
    return found


class Replay:
    """One router, told of its requests again."""

    def __init__(self, step_tokens: int = 0) -> None:
        self._now_s = 0.0
        self._step_tokens = step_tokens
        self._ledger = Ledger(lambda: self._now_s)
        self._first_tokens = FirstTokens()
        self._open: dict[int, tuple[Booking, Expectation]] = {}

    def run(self, requests: Sequence[Told]) -> Iterator[Row]:
        """The requests' rows in the order in which they ended, with what is predicted today."""
        events = [(each.at_s, _DISPATCH, place) for place, each in enumerate(requests)]
        events += [(each.first_s, _FIRST_TOKEN, place) for place, each in enumerate(requests)]
        events += [(each.end_s, _END, place) for place, each in enumerate(requests)]
        heapq.heapify(events)
        while events:
            self._now_s, what, place = heapq.heappop(events)
            if what == _DISPATCH:
                self._open[place] = self._dispatch(requests[place].row)
            elif what == _FIRST_TOKEN:
                self._first_token(requests[place].row, *self._open[place])
            else:
                booking, expected = self._open.pop(place)
                booking.close()
                yield self._end(requests[place].row, expected)

    def _dispatch(self, row: Row) -> tuple[Booking, Expectation]:
        key = row["servers"][-1], ""
        cached = row["expected_cached_tokens"]
        tokens = max(1, row["prompt_tokens"] - cached)
        cost = Cost(row["terms"]["ready"][0], 0.0, row["terms"]["prefill"][0], 0.0, 0.0, 0.0, cached)
        account = self._ledger.accounts.get(key, NOTHING)
        expected = self._first_tokens.expect(key, "", tokens, cost, account, 0.0, self._now_s, self._step_tokens)
        return self._ledger.book(key, tokens, cached, expected.total_ms), expected

    def _first_token(self, row: Row, booking: Booking, expected: Expectation) -> None:
        key = row["servers"][-1], ""
        booking.first_token()
        computed = row["prompt_tokens"] - row["cached_tokens"]
        self._first_tokens.came(key, "", expected, computed, row["actual_ms"], self._now_s)

    def _end(self, row: Row, expected: Expectation) -> Row:
        key, terms = (row["servers"][-1], ""), row["terms"]
        timings = inference_pb2.Timings(
            load=_lasted(terms["ready"][1]), queue=_lasted(terms["queue"][1]), prefill=_lasted(terms["prefill"][1])
        )
        self._first_tokens.told(key, "", expected, row["actual_ms"], timings)
        now = {term: getattr(expected, f"{term}_ms") for term in figures.TERMS}
        return row | {
            "predicted_ms": expected.total_ms,
            "terms": {term: [now[term], terms[term][1]] for term in figures.TERMS},
        }


def _lasted(ms: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(int(ms * 1e6))
    return made


def tables(rows: Sequence[Row], step_tokens: int = 0) -> str:
    """Policies and terms as `python -m bench.warm` prints them, with today's predictions."""
    seconds = {(row["policy"], row["window"]): row for row in rows if "window" in row}
    windows = []
    for requests in told(rows).values():
        by_round: dict[tuple[str, str], list[Row]] = {}
        for row in Replay(step_tokens).run(requests):
            by_round.setdefault((row["policy"], row["at"]), []).append(row)
        windows += [
            Window(policy, at, seconds[policy, at]["seconds"], seconds[policy, at]["tokens"], mine)
            for (policy, at), mine in by_round.items()
            if at != WARM_UP
        ]
    return f"{figures.policies(windows)}\n\n{figures.terms(windows)}"


def main() -> None:
    """Read the files, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.warm.replay", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="of python -m bench.warm; .gz too")
    parser.add_argument("--step-tokens", type=int, default=0, help="that the servers computed in a step at most")
    options = parser.parse_args()
    for path in options.files:
        opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
        with opened as file:
            rows = [json.loads(line) for line in file]
        print(f"\n{path.name}\n\n{tables(rows, options.step_tokens)}")


if __name__ == "__main__":
    main()
