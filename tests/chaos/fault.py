"""What a fault is, and the scene that it happens in."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.mesh import ChaosMesh
from tests.chaos.processes import Process
from tests.chaos.script import Load

# Budgets of the design, section 10: killed 1 s, frozen or cut off 3 s, plus the resume itself, which is a step or two
# of 200 ms and the wait for a place in a step.
KILLED_S = 1.0 + 1.0
CUT_S = 3.0 + 1.0
# No stream should notice: two steps, and a loop that is behind on two shared cores.
UNNOTICED_S = 1.0


@dataclass(frozen=True, slots=True)
class Scene:
    """One trial's mesh, chance and folder, and how many streams run."""

    mesh: ChaosMesh
    rng: random.Random
    seed: str
    folder: Path
    streams: int


_LOAD = Load()

# At the moment of the fault: acts, and tells in words what it did.
Inject = Callable[[], str]
# Before the clients start: prepares what the fault needs, and yields the fault. Puts back what `heal` does not know of
# when the clients have ended.
Stage = Callable[[Scene], AbstractContextManager[Inject]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`gap_s` is the budget for the longest silence of a stream.

    `reroutes`: clients may lose their router by it and go on through the other one. `skewed`: all streams come in
    through one zone, so that half of them cross to the other. `servers`: it also means something to plain gRPC without
    routers. `sdk`: clients use it instead of plain stubs. `load`: what each client asks. `crowd`: how many times as
    many streams; those that are refused, with a reason and before their first token, are right too. `needs`: why this
    machine cannot do it, empty if it can.
    """

    number: str
    name: str
    stage: Stage
    gap_s: float
    namespaces: bool = False
    reroutes: bool = False
    skewed: bool = False
    servers: bool = False
    sdk: bool = False
    load: Load = _LOAD
    crowd: float = 1.0
    needs: Callable[[], str] = str


def at_once(inject: Callable[[ChaosMesh, random.Random], str]) -> Stage:
    """A fault that needs no preparation."""

    @contextmanager
    def stage(scene: Scene) -> Iterator[Inject]:
        yield lambda: inject(scene.mesh, scene.rng)

    return stage


def victim(mesh: ChaosMesh, rng: random.Random) -> Process:
    """A server with streams."""
    return rng.choice(mesh.seen.busy_servers() or mesh.of("server"))
