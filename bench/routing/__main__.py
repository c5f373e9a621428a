"""`python -m bench.routing`: simulate, tell, and write the page."""

import argparse
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

from bench.commit import commit
from bench.routing import page, processes, results, speeds, suite
from bench.routing.highest import Highest
from bench.routing.kept import Differs, Kept
from bench.routing.policies import POLICIES
from bench.routing.workloads import OF_A_FILE, SECONDS, WORKLOADS, Setting

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "routing.json"
KEPT = ROOT / ".cache" / "routing" / "results.jsonl"


def main() -> None:
    """One workload at one load, or all of them at the loads that baselines can just serve."""
    parser = _parser()
    args = parser.parse_args()
    if unknown := set(args.workloads) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    names = args.workloads or [name for name in WORKLOADS if name not in OF_A_FILE or args.trace]
    if args.trace is None and (of_file := set(names).intersection(OF_A_FILE)):
        parser.error(f"--trace FILE is needed for {', '.join(sorted(of_file))}")

    server = _speeds(args.calibration) if args.calibration else speeds.Speeds()
    seeds = tuple(args.seed or (1,))
    setting = Setting(server, 1.0, seeds[0], args.trace, args.seconds)
    about = {"seed": seeds[0], "trace": args.trace.name if args.trace else "", "seconds": args.seconds}
    about["commit"] = commit()
    asked = suite.Asked(tuple(args.policy or POLICIES), tuple(args.routers or suite.ROUTERS), seeds)
    asked = replace(asked, highest={name: load for given in args.highest for name, load in given.items()})
    if args.load is not None:
        asked = replace(asked, highest=dict.fromkeys(names, args.load), curve=(1.0,))
    kept = None
    if args.write:
        try:
            kept = Kept.at(args.keep, {**about, "speeds": asdict(server)})
        except Differs as error:
            parser.error(str(error))
        asked = replace(asked, highest={**kept.highest, **asked.highest})

    began_s = time.monotonic()
    done = {each.cell for each in kept.results} if kept else set()
    for each in processes.found(names, setting, asked, args.processes, done):
        if kept:
            kept.add(each)
        print(f"{time.monotonic() - began_s:6.0f} s  {line(each)}", flush=True)
    if kept:
        results.write(RESULTS, results.in_order(kept.results), server, about)
        publish(ROOT / "docs")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument("--trace", type=Path, help="file of requests for the workloads `trace` and `held-out`")
    parser.add_argument("--load", type=float, help="requests a second; default: the most that a baseline serves")
    parser.add_argument(
        "--highest",
        type=_known,
        action="append",
        default=[],
        metavar="NAME=LOAD|FILE",
        help="the most that a baseline serves, where it need not be looked for: a workload's, in requests a second, or "
        f"those of a file such as {RESULTS.relative_to(ROOT)}; may be given again, the last counts",
    )
    parser.add_argument("--policy", action="append", choices=POLICIES, help="only these")
    parser.add_argument("--routers", type=int, action="append", help="router processes; default: 1 and 8")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long made-up workloads last")
    parser.add_argument(
        "--seed", type=int, action="append", help="of several the first finds the highest loads; default: 1"
    )
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: one a core")
    parser.add_argument("--calibration", type=Path, help="of bench.calibrate, or a JSON file with speeds")
    parser.add_argument("--write", action="store_true", help="at the end write bench/results, plots, docs/routing.md")
    parser.add_argument(
        "--keep",
        type=Path,
        default=KEPT,
        help="with --write: results are added to this file as they end, and what is in it is not run again (default: "
        f"{KEPT.relative_to(ROOT)})",
    )
    return parser


def _known(text: str) -> dict[str, float]:
    """Highest loads by workload, of `--highest`."""
    name, _, load = text.partition("=")
    if name in WORKLOADS:
        return {name: float(load)}
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text!r} is neither WORKLOAD=LOAD nor a file of results")
    return results.middle_loads(results.read(Path(text))[0])


def _speeds(path: Path) -> speeds.Speeds:
    from bench.routing import calibration  # needs numpy, which comes with what draws the plots

    return calibration.read(path)


def publish(docs: Path) -> None:
    """Write plots and page from the results file."""
    from bench.routing import plots  # drawing is not needed to simulate, and takes a second to import

    found, about = results.read(RESULTS)
    plots.draw(docs / "plots", found)
    page.write(docs / "routing.md", found, about)


def line(found: processes.Found) -> str:
    """A result for a terminal."""
    if isinstance(found, Highest):
        return f"{found.workload:15} {found.load:6.2f}/s is the most that a baseline serves"
    cell, its = found.cell, found.figures
    error = "" if its.prediction_error is None else f"  prediction off by {its.prediction_error:.0%}"
    ttft, itl = ("/".join(f"{each:.0f}" for each in times) for times in (its.ttft_ms, its.itl_ms))
    return (
        f"{cell.workload:15} {cell.load:6.2f}/s  {cell.policy:18}x{cell.routers}  seed {cell.seed}"
        f"  good {its.good_share:6.1%}  TTFT {ttft:>18}  ITL {itl:>11}"
        f"  cached {its.cached_share:.1%} of {its.ideal_cached_share:.1%}  imbalance {its.imbalance:.2f}"
        f"  moved {its.moved}  cold {its.cold_starts}  refused {its.rejected}  preempted {its.preemptions}{error}"
    )


if __name__ == "__main__":
    main()
