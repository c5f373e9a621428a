"""Which runs make the page: each workload at the highest load that the best baseline still serves within the SLO."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from bench.routing.baselines import BASELINES
from bench.routing.figures import Figures, figures
from bench.routing.mesh import Mesh
from bench.routing.policies import POLICIES, policy
from bench.routing.workload import Workload
from bench.routing.workloads import WORKLOADS, Setting

ROUTERS = (1, 8)
# Requests a second between which the highest load is looked for, and how closely.
LOWEST, HIGHEST, CLOSE = 1.0, 256.0, 1.03
# The most promising first: one that serves the load settles it.
_ORDER = ("dynamo", "cache-aware", "least-outstanding", "llm-d", "session-ring", "round-robin")
# Loads around that one, for the curves.
CURVE = (0.7, 0.85, 1.0, 1.15, 1.3)


@dataclass(frozen=True, slots=True)
class Result:
    """One run's name and figures. `load`: requests a second that arrive."""

    workload: str
    load: float
    policy: str
    routers: int
    seed: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class Asked:
    """What to run. Without a `load`: the highest that a baseline serves."""

    policies: tuple[str, ...] = POLICIES
    routers: tuple[int, ...] = ROUTERS
    load: float | None = None


def run(workload: Workload, load: float, name: str, routers: int, seed: int) -> Result:
    """One run."""
    mesh = Mesh(workload, policy(name), routers, seed)
    return Result(workload.name, load, name, routers, seed, figures(workload, mesh.run()))


def highest_load(name: str, setting: Setting) -> float:
    """The highest load at which some baseline with one router keeps the SLO, by bisection."""
    assert set(_ORDER) == set(BASELINES)

    def served(load: float) -> bool:
        workload = WORKLOADS[name](replace(setting, load=load))
        return any(run(workload, load, each, 1, setting.seed).figures.within_slo for each in _ORDER)

    return bisected(served, LOWEST, HIGHEST, CLOSE)


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


def suite(names: Iterable[str], setting: Setting, asked: Asked) -> Iterator[Result]:
    """The policies on each workload; on the trace, around that load as well."""
    for name in names:
        at = asked.load or highest_load(name, setting)
        for factor in CURVE if name == "trace" and asked.load is None else (1.0,):
            load = round(at * factor, 2)
            workload = WORKLOADS[name](replace(setting, load=load))
            for routers in asked.routers:
                for each in asked.policies:
                    yield run(workload, load, each, routers, setting.seed)
