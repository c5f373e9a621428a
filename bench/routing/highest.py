"""The highest load of a workload at which some baseline with one router still keeps the SLO."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.routing.baselines import BASELINES
from bench.routing.suite import Cell, run
from bench.routing.workloads import Setting

# Requests a second between which it is looked for, and how closely.
LOWEST, HIGHEST, CLOSE = 1.0, 256.0, 1.03
# The most promising first: one that serves the load settles it.
_ORDER = ("dynamo", "cache-aware", "least-outstanding", "llm-d", "session-ring", "round-robin")


@dataclass(frozen=True, slots=True)
class Highest:
    """A workload's, in requests a second."""

    workload: str
    load: float


def highest(name: str, setting: Setting) -> Highest:
    """Look for it, by bisection."""
    assert set(_ORDER) == set(BASELINES)

    def served(load: float) -> bool:
        return any(run(Cell(name, load, each, 1, setting.seed), setting).figures.within_slo for each in _ORDER)

    return Highest(name, bisected(served, LOWEST, HIGHEST, CLOSE))


def bisected(served: Callable[[float], bool], low: float, high: float, close: float) -> float:
    """The highest load known to be served, within a factor `close` of one that is not. `low` is taken for served."""
    load = low
    while load * 2 < high and served(load * 2):
        load *= 2
    high = min(high, load * 2)
    while high / load > close:
        middle = (load * high) ** 0.5
        if served(middle):
            load = middle
        else:
            high = middle
    return load
