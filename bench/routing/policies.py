"""The policies by name: Stoker's own, and the baselines."""

from bench.routing.baseline import BaselineProcess, TrueCaches
from bench.routing.baselines import BASELINES
from bench.routing.mesh import Make, Mesh, Process
from bench.routing.stoker import StokerProcess

STOKER = "stoker"
POLICIES = (STOKER, *BASELINES)


def policy(name: str) -> Make:
    """What makes a router process of that policy. Raises KeyError for a name that is none."""
    if name == STOKER:
        return StokerProcess
    rule = BASELINES[name]

    def make(mesh: Mesh, _place: int) -> Process:
        return BaselineProcess(mesh, rule(TrueCaches(mesh)))

    return make
