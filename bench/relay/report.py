"""Makes docs/benchmarks.md of bench/results/relay.json: medians over the rounds, and ratios within each round.

`python -m bench.relay.report`
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.relay.script import SHORT
from bench.relay.systems import DIRECT, ROOT

RESULTS = ROOT / "bench" / "results" / "relay.json"
PAGE = ROOT / "docs" / "benchmarks.md"
RUST = ("vllm-router", "smg")
# Where notes by hand begin: what is below it stays when the page is written again.
NOTES = "## Notes"

Result = dict[str, Any]


class Run:
    """The results of one run, by system, case and figure."""

    def __init__(self, whole: Result) -> None:
        self.about: dict[str, str] = whole["about"]
        self.picks: dict[str, float] = whole["pick_us"]
        self._results: list[Result] = whole["results"]
        # By system, by what was looked at.
        self.soak: dict[str, dict[str, dict[str, float]]] = whole.get("soak", {})
        self.systems = list(dict.fromkeys(result["system"] for result in sorted(self._results, key=_order)))
        self.cases = list(dict.fromkeys(result["case"] for result in self._results))
        self.rounds = len({result["round"] for result in self._results})

    def values(self, system: str, case: str, figure: str) -> list[float]:
        """One value a round, in order of the rounds."""
        return [
            result[figure]
            for result in self._results
            if result["system"] == system and result["case"] == case and figure in result
        ]

    def median(self, system: str, case: str, figure: str) -> float | None:
        """Over the rounds; None if it was not measured."""
        values = self.values(system, case, figure)
        return median(values) if values else None

    def ratio(self, case: str, figure: str, of: str, to: str) -> float | None:
        """The median over the rounds of `of` / `to`, each within one round."""
        pairs = zip(self.values(of, case, figure), self.values(to, case, figure), strict=False)
        ratios = [mine / other for mine, other in pairs if other]
        return median(ratios) if ratios else None

    def best(self, case: str, figure: str, among: Sequence[str], *, most: bool = False) -> str | None:
        """Of those measured, the one with the lowest (or highest) median."""
        found = {name: value for name in among if (value := self.median(name, case, figure)) is not None}
        return (max if most else min)(found, key=lambda name: found[name]) if found else None

    def added(self, system: str, case: str, figure: str) -> float | None:
        """What the system adds to the same without a router, median over the rounds."""
        base = "http direct" if system in RUST else "direct"
        pairs = zip(self.values(system, case, figure), self.values(base, case, figure), strict=False)
        added = [mine - other for mine, other in pairs]
        return median(added) if added else None


_ORDER = (
    *("direct", "passthrough", "passthrough h2", "stoker", "stoker link", "stoker h2", "stoker h2 link"),
    *("stoker direct", "stoker h2 direct", "stoker x2"),
    *("http direct", *RUST),
)


def _order(result: Result) -> int:
    return _ORDER.index(result["system"]) if result["system"] in _ORDER else len(_ORDER)


def _cell(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _cost(run: Run, cases: Sequence[str]) -> str:
    routers = [name for name in run.systems if "direct" not in name]
    rows = [[name, *(_cell(run.median(name, case, "cpu_us_per_token"), 1) for case in cases)] for name in routers]
    return _table(["CPU, µs a token", *cases], rows)


def _streams(run: Run, cases: Sequence[str]) -> str:
    rows = []
    for case in cases:
        for name in run.systems:
            got = run.median(name, case, "tokens_per_s")
            if got is None or name in DIRECT:  # no router on its tokens' path, and they tell no delays
                continue
            row = [case, name, _cell(got), _cell(run.median(name, case, "messages_per_token"), 2)]
            row += [
                _cell(run.added(name, case, figure), 1) for figure in ("delay_p50_ms", "delay_p99_ms", "itl_p99_ms")
            ]
            row += [_cell(run.median(name, case, figure), 2) for figure in ("load_cpu_share", "load_lag_p99_ms")]
            rows.append(row)
    head = ["streams", "system", "tokens/s", "messages/token", "added delay p50, ms", "p99", "added ITL p99, ms"]
    return _table([*head, "load's cores", "load's lag p99, ms"], rows)


def _requests(run: Run) -> str:
    rows = []
    for name in run.systems:
        row = [name, _cell(run.median(name, "unary alone", "cpu_us_per_request"))]
        row += [_cell(run.median(name, SHORT, "cpu_us_per_stream"))]
        row += [
            _cell(run.median(name, "unary alone", "p50_ms"), 2),
            _cell(run.added(name, "unary alone", "p50_ms"), 2),
            _cell(run.added(name, "first token", "stream_p50_ms"), 2),
        ]
        row += [_cell(run.median(name, "unary open", figure), 2) for figure in ("p50_ms", "p99_ms", "sent_late_p99_ms")]
        rows.append(row)
    head = [
        "system",
        "CPU, µs a request",
        "a stream of 64 tokens",
        "p50, ms",
        "added p50",
        "added, a stream of one token",
    ]
    return _table([*head, "200/s: p50, ms", "p99, ms", "sent late p99, ms"], rows)


def _targets(run: Run) -> str:
    """The issue's list, as far as this run measures it: a column for each HTTP/2 that may serve clients."""
    rows: list[list[str]] = []

    def told(found: str, *, good: bool) -> str:
        return f"{found}, {'yes' if good else '**no**'}"

    def check(
        what: str,
        case: str,
        figure: str,
        among: Sequence[str],
        limit: float,
        *,
        most: bool = False,
        of: tuple[str, str] = ("stoker", "stoker h2"),
    ) -> None:
        peer = run.best(case, figure, among, most=most)
        if peer is None:
            return
        ratios = [run.ratio(case, figure, name, peer) for name in of]
        row = [
            told(f"{ratio:.2f} x", good=ratio >= limit if most else ratio <= limit) if ratio else "-"
            for ratio in ratios
        ]
        rows.append([what, f"{'≥' if most else '≤'} {limit:g} x {peer}", *row])

    cost, rate = "cpu_us_per_token", "tokens_per_s"
    check("CPU a token, paced, 64 streams", "paced 64", cost, RUST, 1.0)
    check("CPU a token, paced, 256 streams", "paced 256", cost, RUST, 1.5)
    for case in ("paced 64", "paced 256"):
        links = ("stoker link", "stoker h2 link")
        check(f"CPU a token over the SDK's link, {case}", case, cost, RUST, 0.5, of=links)
    for case in (case for case in run.cases if case.startswith("unpaced")):
        check(f"tokens/s, {case}", case, rate, ("passthrough",), 2.0, most=True)
        check(f"tokens/s, {case}", case, rate, RUST, 1.0, most=True)
    check("CPU a unary request", "unary alone", "cpu_us_per_request", RUST, 1.0)
    directs = ("stoker direct", "stoker h2 direct")
    check("CPU a stream of 64 tokens, direct mode", SHORT, "cpu_us_per_stream", RUST, 1.0, of=directs)
    for case in ("paced 64", "paced 256"):
        added = [run.added(name, case, "itl_p99_ms") for name in ("stoker", "stoker h2")]
        row = [told(f"{each:.1f} ms", good=each <= 5) if each is not None else "-" for each in added]
        rows.append([f"added ITL p99, {case}", "≤ 5 ms", *row])

    def soaked(what: str, limit: str, look: str, tell: Callable[[dict[str, float]], str]) -> None:
        found = [run.soak.get(name, {}).get(look) for name in ("stoker", "stoker h2")]
        if any(found):
            rows.append([what, limit, *(tell(each) if each else "-" for each in found)])

    def left(figures: dict[str, float]) -> str:
        good = figures["rss_ratio"] <= 1.05 and figures["descriptors_more"] <= 0
        more = f"({figures['rss_after_mib']:.0f} MiB), {figures['descriptors_more']:.0f} descriptors"
        return told(f"{figures['rss_ratio']:.3f} x {more}", good=good)

    def beside(figures: dict[str, float]) -> str:
        spread = f"quartiles of {figures['rounds']:.0f} rounds {figures['ratio_p25']:.2f} to {figures['ratio_p75']:.2f}"
        found = f"{figures['ratio']:.2f} x ({figures['itl_p99_beside_ms']:.1f} ms; {spread})"
        return told(found, good=figures["ratio"] <= 1.1)

    streams = max((each.get("leftovers", {}).get("streams", 0) for each in run.soak.values()), default=0)
    soaked(
        f"memory after {streams:,.0f} streams more, half of them cancelled", "≤ 1.05 x, none left", "leftovers", left
    )
    soaked("others' ITL p99 beside a client that never reads", "≤ 1.1 x", "slow reader", beside)
    return _table(["target", "is", '`http2 = "grpc"`', '`http2 = "stoker"`'], rows)


def page(run: Run, notes: str) -> str:
    """docs/benchmarks.md."""
    paced = [case for case in run.cases if case.startswith("paced")]
    unpaced = [case for case in run.cases if case.startswith("unpaced")]
    picks = ", ".join(f"{value:g} µs at {count}" for count, value in run.picks.items())
    about = run.about
    return "\n\n".join(
        [
            "# Benchmarks",
            "What relaying costs, beside the peers, plain grpc.aio pass-through and no router, interleaved in one run. "
            "Written by `make bench` (`make bench-peers` once before, for the peers); raw figures: "
            "[bench/results/relay.json](../bench/results/relay.json).",
            f"{about['date']}, commit {about['commit']}, {about['machine']}, Python {about['python']}; "
            f"{about['versions']}. Load average at the end {about['load_average']}. "
            f"`{about['command']}`; medians of {run.rounds} rounds, ratios within one round.",
            "Mock servers make a token of each stream every 20 ms (paced) or as fast as it goes (unpaced, 512 tokens a "
            "stream) at no cost to speak of; each token says when it was made. Stoker and pass-through speak gRPC, a "
            "channel for each eight streams (`stoker link`: the SDK's one link for all streams; `stoker direct`: the "
            "SDK in direct mode, before a simulated server instead of a mock), "
            "the peers HTTP with server-sent events, a connection for each stream. "
            "CPU is the router's own, from the operating system; *added* is beyond the same without a router. The load "
            "generator's cores and lag stand beside what it measured: above 0.9 cores, or late, it is the limit.",
            "## Targets",
            _targets(run),
            "## CPU for each token",
            _cost(run, [*paced, *unpaced]),
            "![CPU for each token](images/relay-cpu.png)",
            "## Streams",
            _streams(run, [*paced, *unpaced]),
            "![Delay of tokens](images/relay-delay.png)",
            "## Requests",
            "Unary, one at a time on one connection, and at a fixed rate, counted from when each was due. "
            "Streams of 64 tokens: 64 at a time, paced, begun evenly one after the other; of direct mode that is "
            "what naming a server costs, and hearing what became of the stream.",
            _requests(run),
            "## Picks",
            f"The policy alone, for one request: {picks} endpoints.",
            notes.rstrip() + "\n",
        ]
    )


def main() -> int:
    """The process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    run = Run(json.loads(arguments.results.read_text()))
    old = arguments.page.read_text() if arguments.page.exists() else ""
    kept = old.partition(NOTES)
    arguments.page.write_text(page(run, NOTES + kept[2] if kept[1] else NOTES))
    print(f"written: {arguments.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
