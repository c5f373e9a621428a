"""Writes results into docs/routing.md: tables between two marks, the rest of the page is written by hand."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.routing.figures import Figures
from bench.routing.policies import STOKER
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


def write(page: Path, results: Sequence[Result]) -> None:
    """Put the tables into the page. Raises ValueError if it has no place for them."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} lacks the marks {BEGIN!r} and {END!r} between which the tables go")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}\n\n{tables(results)}\n{END}{after}")


def tables(results: Iterable[Result]) -> str:
    """One table for each workload and load at which all policies ran, of the trace the one in the middle."""
    groups: dict[str, dict[float, list[Result]]] = {}
    for result in results:
        groups.setdefault(result.workload, {}).setdefault(result.load, []).append(result)
    parts = []
    for workload, loads in groups.items():
        load = sorted(loads)[len(loads) // 2]
        parts.append(_table(workload, load, loads[load]))
    return "\n".join(parts)


def verdict(results: Sequence[Result], routers: int) -> tuple[str, float]:
    """The best baseline's name with so many routers, and Stoker's goodput relative to its."""
    mine = [each for each in results if each.routers == routers]
    best = max((each for each in mine if each.policy != STOKER), key=lambda each: each.figures.goodput)
    (own,) = (each for each in mine if each.policy == STOKER)
    return best.policy, own.figures.goodput / best.figures.goodput if best.figures.goodput else 1.0


def _table(workload: str, load: float, results: list[Result]) -> str:
    ideal = results[0].figures.ideal_cached_share
    rows = [
        f"### {workload}, {load:.1f} requests/s",
        "",
        f"An ideal cache would have {ideal:.1%} of the prompt tokens. "
        + " ".join(
            f"With {routers} router{'s' if routers > 1 else ''}, Stoker's goodput is {ratio:.2f} x the best baseline's"
            f" ({best})."
            for routers in sorted({each.routers for each in results})
            for best, ratio in (verdict(results, routers),)
        ),
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + " --- |" * len(_COLUMNS),
    ]
    rows += [_row(result) for result in sorted(results, key=lambda each: (each.routers, -each.figures.goodput))]
    return "\n".join(rows) + "\n"


def _row(result: Result) -> str:
    its: Figures = result.figures
    name = f"**{result.policy}**" if result.policy == STOKER else result.policy
    return (
        f"| {name} | {result.routers} | {its.goodput:.2f} | {its.good_share:.1%} | {_ms(its.ttft_ms)} |"
        f" {_ms(its.itl_ms)} | {its.cached_share:.1%} | {its.imbalance:.2f} | {its.moved} | {its.cold_starts} |"
        f" {its.rejected} |"
    )


def _ms(quantiles: tuple[float, ...]) -> str:
    return " / ".join(f"{each:,.0f}" for each in quantiles)
