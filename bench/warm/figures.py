"""What the rows say, as tables: the policies side by side, their predictions term by term, and the moves of models."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.warm.load import Row

# The rounds before the measured ones are of this name.
WARM_UP = "warm-up"
TERMS = ("ready", "queue", "prefill", "rest")
# A prediction is held to be right within this share of the actual time.
_RIGHT = 0.25


@dataclass(frozen=True)
class Window:
    """A while under load: its rows, how long it was, and how many tokens came in it."""

    policy: str
    at: str
    seconds: float
    tokens: int
    rows: Sequence[Row]

    def row(self) -> Row:
        """The window itself as a row to keep beside those of its requests."""
        return {"window": self.at, "policy": self.policy, "seconds": round(self.seconds, 3), "tokens": self.tokens}


def policies(windows: Sequence[Window]) -> str:
    """The policies side by side, each over all of its windows."""
    head = [
        "policy",
        "requests",
        "failed",
        "requests/s",
        "tokens/s",
        "TTFT p50 / p90 / p99 ms",
        "ITL p50 / p90 / p99 ms",
    ]
    lines = []
    for policy, mine in _by_policy(windows).items():
        rows = [row for window in mine for row in window.rows]
        done = [row for row in rows if row["outcome"] == "ok"]
        seconds = sum(window.seconds for window in mine)
        prompt = sum(row["prompt_tokens"] for row in done)
        lines.append(
            [
                *(policy, len(done), sum(row["outcome"] == "failed" for row in rows)),
                f"{len(done) / seconds:.2f}",
                f"{sum(window.tokens for window in mine) / seconds:.0f}",
                _quantiles([row["ttft_ms"] for row in rows if "ttft_ms" in row]),
                _quantiles([row["itl_ms"] for row in rows if "itl_ms" in row], 1),
                f"{sum(row['cached_tokens'] for row in done) / prompt:.1%}" if prompt else "",
                str(_moved(done)),
                *_predicted(done),
            ]
        )
    more = ["cached", "moved", "predicted TTFT off by, median", "bias, median", f"within {_RIGHT:.0%}"]
    return _table([*head, *more], lines)


def terms(windows: Sequence[Window]) -> str:
    """The time to the first token by term: medians of what was predicted, of what was, and of how far off it was."""
    lines = []
    for policy, mine in _by_policy(windows).items():
        told = [row["terms"] for window in mine for row in window.rows if row["outcome"] == "ok" and "terms" in row]
        for term in TERMS if told else ():
            pairs = [each[term] for each in told]
            off = sorted(abs(predicted - actual) for predicted, actual in pairs)
            lines.append(
                [
                    *(policy, term),
                    *(f"{statistics.median(pair[at] for pair in pairs):.1f}" for at in (0, 1)),
                    *(f"{statistics.fmean(pair[at] for pair in pairs):.1f}" for at in (0, 1)),
                    *(f"{each:.1f}" for each in (statistics.median(off), _at(off, 0.9))),
                ]
            )
    head = ["policy", "term", "predicted, median ms", "actual, median ms", "predicted, mean ms", "actual, mean ms"]
    return _table([*head, "off, median ms", "off, p90 ms"], lines)


def moves(steps: Sequence[Row]) -> str:
    """How long models took to move, and what a request felt: by what was done, in the order of its first time."""
    done: dict[tuple[str, str], list[Row]] = {}
    for step in steps:
        done.setdefault((step["step"], step["model"]), []).append(step)
    lines = []
    for (what, model), mine in done.items():
        times = ", ".join(f"{each['seconds']:.3f}" for each in mine if "error" not in each)
        failed = "; ".join(each["error"] for each in mine if "error" in each)
        lines.append([what, model, len(mine), times, failed])
    return _table(["what", "model", "times", "s, in turn", "failed"], lines)


def _by_policy(windows: Iterable[Window]) -> Mapping[str, list[Window]]:
    grouped: dict[str, list[Window]] = {}
    for window in windows:
        grouped.setdefault(window.policy, []).append(window)
    return grouped


def _predicted(done: Sequence[Row]) -> tuple[str, str, str]:
    """How far off, which way, and how many were right; as shares of the actual time."""
    known = [(row["predicted_ms"], row["actual_ms"]) for row in done if row.get("actual_ms")]
    if not known:
        return "", "", ""
    off = [(predicted - actual) / actual for predicted, actual in known]
    right = sum(abs(each) <= _RIGHT for each in off) / len(off)
    return f"{statistics.median(map(abs, off)):.1%}", f"{statistics.median(off):+.1%}", f"{right:.0%}"


def _moved(done: Sequence[Row]) -> int:
    """How often a session's turn went to another server than the one before."""
    last: dict[str, str] = {}
    moved = 0
    for row in sorted(done, key=lambda row: (row["session"], row["turn"])):
        server = row["servers"][-1]
        moved += last.get(row["session"], server) != server
        last[row["session"]] = server
    return moved


def _quantiles(values: Sequence[float], digits: int = 0) -> str:
    ordered = sorted(values)
    return " / ".join(f"{_at(ordered, q):,.{digits}f}" for q in (0.5, 0.9, 0.99)) if ordered else ""


def _at(ordered: Sequence[float], quantile: float) -> float:
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    if not lines:
        return ""
    written: list[Sequence[object]] = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in written)
