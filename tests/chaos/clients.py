"""Client processes of a trial, and what they ask."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.chaos.fault import Scene
from tests.chaos.mesh import ZONES
from tests.chaos.processes import Process
from tests.chaos.script import Ask, Load, script


@dataclass(frozen=True, slots=True)
class ClientProcess:
    """A process that writes its history to a file."""

    process: Process
    asks: Sequence[Ask]
    history: Path


def client(scene: Scene, name: str, zone: str, streams: int, how: str = "", load: Load | None = None) -> ClientProcess:
    """A client of the zone, not started. `how`: the client's flag, empty for plain stubs."""
    load = replace(load or Load(), streams=streams)
    mesh = scene.mesh
    if how == "--control":
        processes = mesh.of("server")
    else:
        processes = [mesh.router(each) for each in sorted(ZONES, key=lambda each: each != zone)]
    history = scene.folder / f"{name}.jsonl"
    history.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "tests.chaos.client", "--name", name, "--seed", scene.seed]
    argv += ["--addresses", ",".join(process.front or process.address for process in processes)]
    argv += ["--load", load.to_json(), "--out", str(history), *filter(None, [how])]
    process = Process(name, "client", zone, mesh.places[zone], argv, scene.folder / f"{name}.log")
    return ClientProcess(process, script(scene.seed, name, load), history)
