"""Writes results into docs/routing.md: tables between two marks, the rest of the page is written by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.routing.figures import Figures
from bench.routing.policies import STOKER
from bench.routing.results import middle_loads
from bench.routing.seeds import Seeds, by_seed
from bench.routing.suite import Result

BEGIN = "<!-- python -m bench.routing: begin -->"
END = "<!-- end -->"

_COLUMNS = (
    "policy",
    "routers",
    "goodput /s",
    "good",
    "TTFT p50 / p90 / p99 ms",
    "ITL p50 / p90 / p99 ms",
    "cached",
    "imbalance",
    "moved",
    "cold starts",
    "refused",
)


def write(page: Path, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    """Put the tables into the page. Raises ValueError if it has no place for them."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} lacks the marks {BEGIN!r} and {END!r} between which the tables go")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}\n\n{_about(about)}\n\n{tables(results)}\n{END}{after}")


def tables(results: Sequence[Result]) -> str:
    """One table for each workload at its load, of the trace the one in the middle."""
    loads = middle_loads(results)
    at = [each for each in results if each.cell.load == loads[each.cell.workload]]
    groups: dict[str, list[Seeds]] = {}
    for each in by_seed(at):
        groups.setdefault(each.workload, []).append(each)
    return "\n".join(_table(group) for group in groups.values())


def verdict(results: Sequence[Seeds], routers: int) -> tuple[str, float]:
    """The best baseline's name with so many routers, and Stoker's goodput relative to its; means over the seeds."""
    goodput = {each.policy: each.mean(_goodput) for each in results if each.routers == routers}
    own = goodput.pop(STOKER)
    best = max(goodput, key=lambda name: goodput[name])
    return best, own / goodput[best] if goodput[best] else 1.0


def _goodput(its: Figures) -> float:
    return its.goodput


def _about(about: Mapping[str, Any]) -> str:
    return (
        f"Of {about['commit']}; {about['seconds']:g} s of arrivals, a trace whole. With several seeds a figure is "
        "their mean, in brackets the least and the greatest."
    )


def _table(group: Sequence[Seeds]) -> str:
    ideal = group[0].mean(lambda its: its.ideal_cached_share)
    seeds = sorted({result.cell.seed for each in group for result in each.results})
    rows = [
        f"### {group[0].workload}, {group[0].load:.1f} requests/s",
        "",
        f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}. "
        f"An ideal cache would have {ideal:.1%} of the prompt tokens. "
        + " ".join(
            f"With {routers} router{'s' if routers > 1 else ''}, Stoker's goodput is {ratio:.2f} x the best baseline's"
            f" ({best})."
            for routers in sorted({each.routers for each in group})
            for best, ratio in (verdict(group, routers),)
        ),
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + " --- |" * len(_COLUMNS),
    ]
    rows += [_row(each) for each in sorted(group, key=lambda each: (each.routers, -each.mean(_goodput)))]
    return "\n".join(rows) + "\n"


def _row(seeds: Seeds) -> str:
    name = f"**{seeds.policy}**" if seeds.policy == STOKER else seeds.policy
    good = _spread(seeds.values(lambda its: its.good_share), "{:.1%}")
    last = _spread(seeds.values(lambda its: its.ttft_ms[-1]), "{:,.0f}")
    ttft = " / ".join([*(f"{each:,.0f}" for each in seeds.means(lambda its: its.ttft_ms)[:-1]), last])
    itl = " / ".join(f"{each:,.0f}" for each in seeds.means(lambda its: its.itl_ms))
    return (
        f"| {name} | {seeds.routers} | {seeds.mean(_goodput):.2f} | {good} | {ttft} | {itl} |"
        f" {seeds.mean(lambda its: its.cached_share):.1%} | {seeds.mean(lambda its: its.imbalance):.2f} |"
        f" {seeds.mean(lambda its: its.moved):.0f} | {seeds.mean(lambda its: its.cold_starts):.0f} |"
        f" {seeds.mean(lambda its: its.rejected):.0f} |"
    )


def _spread(values: Sequence[float], form: str) -> str:
    mean = form.format(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"
