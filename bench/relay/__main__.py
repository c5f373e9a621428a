"""`python -m bench.relay`: what a relayed token costs, beside the peers, in one run; writes bench/results/relay.json.

Rounds go through all systems in a new order each time, so that what else the machine does meets all of them alike.
`--write` makes docs/benchmarks.md and its plots of it. The peers need `make bench-peers` once.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from bench.relay import about, measure, soak
from bench.relay.measure import Figures, Window
from bench.relay.pick import pick_us
from bench.relay.script import PACED, SHORT, UNPACED
from bench.relay.systems import ROOT, System, peers_installed, systems

OURS = (
    *("direct", "passthrough", "passthrough h2", "stoker", "stoker link", "stoker h2", "stoker h2 link"),
    *("stoker direct", "stoker h2 direct", "stoker x2"),
)
PEERS = ("http direct", "vllm-router", "smg")
RESULTS = ROOT / "bench" / "results" / "relay.json"
OPEN_RATE_PER_S = 200.0

SHORT_AT_ONCE = SHORT_TOKENS = 64
# Those that are not measured in every case, and where they are: what they could show elsewhere others do, and a round
# takes its time. Direct mode has nothing on the path of tokens, and its server is none that goes as fast as it can.
ONLY = {
    "passthrough": ("paced 64", "paced 256", "unpaced 16", "unpaced 64", "first token", "unary alone"),
    "passthrough h2": ("paced 64", "unary alone"),
    "stoker link": ("paced 16", "paced 64", "paced 256", "unpaced 16", "unpaced 64", SHORT, "unary alone"),
    "stoker h2 link": ("paced 16", "paced 64", "paced 256", "unpaced 16", "unpaced 64", SHORT, "unary alone"),
    "stoker direct": ("paced 64", "paced 256", SHORT),
    "stoker h2 direct": ("paced 64", "paced 256", SHORT),
    "stoker x2": ("paced 64", "paced 256", "unpaced 64"),
}

# A router by each HTTP/2 that may serve clients.
SOAKED = ("stoker", "stoker h2")

Case = Callable[[System, Window], Awaitable[Figures]]


def cases(counts: list[int], unpaced: list[int]) -> dict[str, Case]:
    """What is measured of each system, by name."""
    found: dict[str, Case] = {}
    for count in counts:
        found[f"paced {count}"] = lambda system, window, n=count: measure.streams(system, n, PACED, window)  # type: ignore[misc]
    for count in unpaced:
        found[f"unpaced {count}"] = lambda system, window, n=count: measure.streams(system, n, UNPACED, window)  # type: ignore[misc]
    found[SHORT] = lambda system, window: measure.short_streams(system, SHORT_AT_ONCE, SHORT_TOKENS, window)
    found["first token"] = measure.first_token
    found["unary alone"] = measure.unary_alone
    found["unary open"] = lambda system, window: measure.unary_open(system, OPEN_RATE_PER_S, window)
    return found


def run(up: list[System], chosen: dict[str, Case], rounds: int, window: Window) -> list[dict[str, object]]:
    """All rounds; each result says its round, system and case."""
    rng = random.Random(5)
    results: list[dict[str, object]] = []
    for number in range(rounds):
        for name, case in chosen.items():
            for system in rng.sample(up, len(up)):
                if not measured(system, name):
                    continue
                figures = uvloop.run(_measured(case, system, window))
                results.append({"round": number, "system": system.name, "case": name, **_rounded(figures)})
                print(_line(results[-1]), flush=True)
    return results


def measured(system: System, case: str) -> bool:
    """Whether there is something to measure: without a router nothing costs one."""
    return case in ONLY.get(system.name, (case,)) and (case != SHORT or bool(system.pids))


async def _measured(case: Case, system: System, window: Window) -> Figures:
    figures = await case(system, window)
    await asyncio.sleep(0.1)  # what was cancelled is over before the next is measured
    return figures


async def _soak(system: System, streams: int, window: Window) -> dict[str, Figures]:
    return {
        "leftovers": _rounded(await soak.leftovers(system, streams)),
        "slow reader": _rounded(await soak.slow_reader(system, window)),
    }


def _rounded(figures: Figures) -> Figures:
    return {name: round(value, 3) for name, value in figures.items()}


def _line(result: dict[str, object]) -> str:
    costs = ("cpu_us_per_token", "cpu_us_per_request", "cpu_us_per_stream")
    shown = ("tokens_per_s", *costs, "messages_per_token", "delay_p99_ms", "p50_ms")
    figures = "  ".join(f"{name} {result[name]:.1f}" for name in shown if name in result)
    return f"{result['round']}  {result['case']:<12} {result['system']:<12} {figures}"


def main() -> int:
    """The process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window-s", type=float, default=1.5)
    parser.add_argument("--settle-s", type=float, default=0.4)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 16, 64, 256])
    parser.add_argument("--unpaced", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--systems", nargs="*", default=[*OURS, *PEERS])
    parser.add_argument("--cases", nargs="*", default=[], help="default: all")
    parser.add_argument("--soak", type=int, default=10_000, help="streams opened and ended; 0: none")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="where the systems' logs are kept")
    arguments = parser.parse_args()
    wanted = [name for name in arguments.systems if name not in ("vllm-router", "smg") or peers_installed()]
    if len(wanted) < len(arguments.systems):
        sys.stderr.write("bench: the peers are not installed, so they are left out; `make bench-peers` installs them\n")
    chosen = cases(arguments.streams, arguments.unpaced)
    if arguments.cases:
        chosen = {name: case for name, case in chosen.items() if name in arguments.cases}
    window = Window(arguments.settle_s, arguments.window_s)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with systems(folder, wanted) as up:
            results = run(up, chosen, arguments.rounds, window)
            soaked = {
                system.name: uvloop.run(_soak(system, arguments.soak, window))
                for system in up
                if system.name in SOAKED and arguments.soak
            }
    picks = {str(count): round(pick_us(count), 1) for count in (8, 64, 512)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    whole = {"about": about.about(sys.argv[1:]), "results": results, "pick_us": picks, "soak": soaked}
    arguments.out.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"written: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
