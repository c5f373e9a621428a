"""Draws results, means over seeds: goodput and first tokens of the trace over the load, and goodput by workload."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bench.routing.policies import POLICIES, STOKER
from bench.routing.results import middle_loads
from bench.routing.seeds import Seeds, by_seed
from bench.routing.suite import Result

_COLORS = dict(zip(POLICIES, ("red", "gray", "blue", "brown", "green", "purple", "orange"), strict=True))


def draw(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Write the plots; returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    trace = by_seed(each for each in results if each.cell.workload == "trace")
    if trace:
        paths.append(_curves(folder / "routing-trace.png", trace))
    loads = middle_loads(results)
    at = by_seed(each for each in results if each.cell.load == loads[each.cell.workload])
    paths.append(_bars(folder / "routing-workloads.png", at))
    return paths


def _curves(path: Path, results: Sequence[Seeds]) -> Path:
    figure = Figure(figsize=(11, 7))
    axes = figure.subplots(2, 2, sharex=True)
    for row, routers in enumerate((1, 8)):
        goodput, first = axes[row]
        for name in POLICIES:
            mine = sorted(
                (each for each in results if each.policy == name and each.routers == routers),
                key=lambda each: each.load,
            )
            loads = [each.load for each in mine]
            style = {
                "color": _COLORS[name],
                "linewidth": 2.5 if name == STOKER else 1.2,
                "marker": "o",
                "markersize": 3,
            }
            goodput.plot(loads, [each.mean(lambda its: its.goodput) for each in mine], label=name, **style)
            first.plot(loads, [each.mean(lambda its: its.ttft_ms[1]) for each in mine], **style)
        goodput.set_ylabel(f"goodput, requests/s\n{routers} router{'s' if routers > 1 else ''}")
        first.set_ylabel("TTFT p90, ms")
        first.set_yscale("log")
        first.axhline(2000, color="black", linewidth=0.8, linestyle=":")
        for each in (goodput, first):
            each.grid(alpha=0.3)
    for each in axes[1]:
        each.set_xlabel("requests/s offered")
    axes[0][0].legend(fontsize=8)
    return _save(path, figure)


def _bars(path: Path, results: Sequence[Seeds]) -> Path:
    """The share of requests within the SLO."""
    workloads = list(dict.fromkeys(each.workload for each in results))
    figure = Figure(figsize=(11, 7))
    axes = figure.subplots(2, 1, sharex=True)
    width = 0.8 / len(POLICIES)
    for axis, routers in zip(axes, (1, 8), strict=True):
        for place, name in enumerate(POLICIES):
            mine = {e.workload: e for e in results if (e.policy, e.routers) == (name, routers)}
            shares = [mine[w].mean(lambda its: its.good_share) if w in mine else 0.0 for w in workloads]
            axis.bar([i + place * width for i in range(len(workloads))], shares, width, label=name, color=_COLORS[name])
        axis.set_ylabel(f"requests within the SLO\n{routers} router{'s' if routers > 1 else ''}")
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3, axis="y")
    axes[1].set_xticks([i + 0.4 - width / 2 for i in range(len(workloads))], workloads, rotation=20)
    axes[0].legend(fontsize=8, ncols=len(POLICIES), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _save(path, figure)


def _save(path: Path, figure: Figure) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return path
