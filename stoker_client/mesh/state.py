"""The state file of a local mesh: what runs, where, and who supervises it. Written whole, replaced atomically."""

import json
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from stoker_client.mesh.identity import Identity

FILE = "state.json"


class Kind(StrEnum):
    """What a process of the mesh is."""

    CONSUL = "consul"
    SERVER = "server"
    ROUTER = "router"


class Phase(StrEnum):
    """How far a process, or the mesh, is."""

    STARTING = "starting"
    # The process answers; the mesh: every process did, and every router sees every server.
    UP = "up"
    # It ended and is started again after a pause.
    RESTARTING = "restarting"
    # It ended too often; the mesh: it did not come up.
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process of the mesh. `identity` is None while it does not run; `note` says what it does, for a person."""

    name: str
    kind: Kind
    zone: str
    phase: Phase
    address: str
    log: str
    metrics_address: str = ""
    identity: Identity | None = None
    restarts: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class MeshState:
    """The whole mesh. `started_at_s` is Unix time; `ends_within_s` what ending it takes at most, in seconds."""

    supervisor: Identity
    phase: Phase
    engine: str
    model: str
    started_at_s: float
    ends_within_s: float
    processes: tuple[ProcessState, ...]

    def of_kind(self, kind: Kind) -> tuple[ProcessState, ...]:
        """The processes of one kind, in the order of zones."""
        return tuple(process for process in self.processes if process.kind is kind)

    def routers(self) -> tuple[str, ...]:
        """The routers' addresses, the first zone's first."""
        return tuple(process.address for process in self.of_kind(Kind.ROUTER))


def write(folder: Path, state: MeshState) -> None:
    """Replace the state file in `folder`; whoever reads it sees the old one or the new one, whole."""
    path = folder / FILE
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(asdict(state), indent=2) + "\n")
    os.replace(beside, path)


def read(folder: Path) -> MeshState | None:
    """The state in `folder`; None if there is none that this version can read."""
    try:
        return _mesh(json.loads((folder / FILE).read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        # Another version wrote it; its mesh cannot be addressed by this one.
        return None


def remove(folder: Path) -> None:
    """Remove the state file: nothing runs."""
    (folder / FILE).unlink(missing_ok=True)


def _mesh(found: dict[str, Any]) -> MeshState:
    return MeshState(
        **{
            **found,
            "supervisor": Identity(**found["supervisor"]),
            "phase": Phase(found["phase"]),
            "processes": tuple(_process(process) for process in found["processes"]),
        }
    )


def _process(found: dict[str, Any]) -> ProcessState:
    identity = found["identity"]
    return ProcessState(
        **{
            **found,
            "kind": Kind(found["kind"]),
            "phase": Phase(found["phase"]),
            "identity": None if identity is None else Identity(**identity),
        }
    )
