"""`python -m bench.routing`: simulate, tell, and write the page."""

import argparse
import time
from pathlib import Path

from bench.routing import page, results, speeds, suite
from bench.routing.policies import POLICIES
from bench.routing.workloads import OF_A_FILE, SECONDS, WORKLOADS, Setting

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"


def main() -> None:
    """One workload at one load, or all of them at the loads that baselines can just serve."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument("--trace", type=Path, help="file of requests for the workload `trace`")
    parser.add_argument("--load", type=float, help="requests a second; default: the most that a baseline serves")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="only these")
    parser.add_argument("--routers", type=int, action="append", help="router processes; default: 1 and 8")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long made-up workloads last")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calibration", type=Path, help="of bench.calibrate, or a JSON file with speeds")
    parser.add_argument("--write", action="store_true", help="write bench/results, plots and docs/routing.md")
    args = parser.parse_args()
    if unknown := set(args.workloads) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    names = args.workloads or [name for name in WORKLOADS if name not in OF_A_FILE or args.trace]
    if args.trace is None and (of_file := set(names).intersection(OF_A_FILE)):
        parser.error(f"--trace FILE is needed for {', '.join(sorted(of_file))}")

    server = _speeds(args.calibration) if args.calibration else speeds.Speeds()
    setting = Setting(server, 1.0, args.seed, args.trace, args.seconds)
    found = []
    began_s = time.monotonic()
    asked = suite.Asked(tuple(args.policy or POLICIES), tuple(args.routers or suite.ROUTERS), args.load)
    for result in suite.suite(names, setting, asked):
        found.append(result)
        print(f"{time.monotonic() - began_s:6.0f} s  {line(result)}", flush=True)
    if args.write:
        about = {"seed": args.seed, "trace": args.trace.name if args.trace else "", "seconds": args.seconds}
        results.write(RESULTS / "routing.json", found, server, about)
        publish(ROOT / "docs")


def _speeds(path: Path) -> speeds.Speeds:
    from bench.routing import calibration  # needs numpy, which comes with what draws the plots

    return calibration.read(path)


def publish(docs: Path) -> None:
    """Write plots and page from the results file."""
    from bench.routing import plots  # drawing is not needed to simulate, and takes a second to import

    found, _ = results.read(RESULTS / "routing.json")
    plots.draw(docs / "plots", found)
    page.write(docs / "routing.md", found)


def line(result: suite.Result) -> str:
    """A result for a terminal."""
    its = result.figures
    error = "" if its.prediction_error is None else f"  prediction off by {its.prediction_error:.0%}"
    ttft, itl = ("/".join(f"{each:.0f}" for each in times) for times in (its.ttft_ms, its.itl_ms))
    return (
        f"{result.workload:15} {result.load:6.2f}/s  {result.policy:18}x{result.routers}  good {its.good_share:6.1%}"
        f"  TTFT {ttft:>18}  ITL {itl:>11}"
        f"  cached {its.cached_share:.1%} of {its.ideal_cached_share:.1%}  imbalance {its.imbalance:.2f}"
        f"  moved {its.moved}  cold {its.cold_starts}  refused {its.rejected}  preempted {its.preemptions}{error}"
    )


if __name__ == "__main__":
    main()
