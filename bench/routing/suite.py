"""Which runs make the page: every policy on each workload, at the highest load that a baseline still serves."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from bench.routing.figures import Figures, figures
from bench.routing.mesh import Mesh
from bench.routing.policies import POLICIES, policy
from bench.routing.workloads import WORKLOADS, Setting

ROUTERS = (1, 8)
# Loads around the highest one, for the trace's curves.
CURVE = (0.7, 0.85, 1.0, 1.15, 1.3)


@dataclass(frozen=True, slots=True)
class Cell:
    """What is run once. `load`: requests a second that arrive."""

    workload: str
    load: float
    policy: str
    routers: int
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """A run and its figures."""

    cell: Cell
    figures: Figures


@dataclass(frozen=True, slots=True)
class Asked:
    """What to run. `highest`: the workloads' highest loads where they are known, requests a second; `curve`: at which
    multiples of it the trace is run."""

    policies: tuple[str, ...] = POLICIES
    routers: tuple[int, ...] = ROUTERS
    seeds: tuple[int, ...] = (1,)
    highest: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[float, ...] = CURVE


def cells(name: str, asked: Asked, highest: float) -> Iterator[Cell]:
    """A workload's, at its highest load, and the trace's at the loads around it."""
    for factor in asked.curve if name == "trace" else (1.0,):
        for seed in asked.seeds:
            for routers in asked.routers:
                for each in asked.policies:
                    yield Cell(name, round(highest * factor, 2), each, routers, seed)


def run(cell: Cell, setting: Setting) -> Result:
    """One run. Of the setting, load and seed are the cell's."""
    workload = WORKLOADS[cell.workload](replace(setting, load=cell.load, seed=cell.seed))
    mesh = Mesh(workload, policy(cell.policy), cell.routers, cell.seed)
    return Result(cell, figures(workload, mesh.run()))
