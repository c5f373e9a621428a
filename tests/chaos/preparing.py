"""Prepares a mesh for a fault: processes with other settings, or behind a proxy, for the length of a block."""

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.mesh import ChaosMesh
from tests.chaos.processes import Process


@contextmanager
def restarted(mesh: ChaosMesh, changed: Sequence[tuple[Process, Sequence[str]]]) -> Iterator[None]:
    """These processes have these options as well, and what else was changed of them, from a new life on; then not."""
    former = [process.argv for process, _ in changed]
    for process, options in changed:
        process.kill()
        process.argv = [*process.argv, *options]
        process.start()
    try:
        mesh.wait_ready()
        yield
    finally:
        for (process, _), argv in zip(changed, former, strict=True):
            process.kill()
            process.argv = argv
            process.start()


@contextmanager
def fronted(mesh: ChaosMesh, process: Process) -> Iterator[None]:
    """A server or a router is reached through an h2_proxy only; `tell_front` tells it what to do."""
    port = mesh.free_port()
    commands = _commands(mesh, process.name)
    commands.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "tests.chaos.h2_proxy", process.host, str(port), process.address, str(commands)]
    log = mesh.folder / f"front-{process.name}.log"
    front = Process(f"front-{process.name}", "front", process.zone, process.place, argv, log, process.host, port)
    front.start()
    process.front = front.address
    try:
        mesh.until(lambda: front.place.run(lambda: _listens(front)), f"{front.name} listens")
        # Routers hear of a server's address from Consul, clients of a router's from us.
        options = [f"--advertise-address={front.address}"] if process.kind == "server" else []
        with restarted(mesh, [(process, options)]):
            yield
    finally:
        process.front = ""
        front.kill()


def tell_front(mesh: ChaosMesh, name: str, command: str) -> None:
    """A command to the proxy in front of a process: see h2_proxy."""
    path = _commands(mesh, name)
    fresh = path.with_suffix(".new")
    fresh.write_text(command)
    fresh.replace(path)


def _commands(mesh: ChaosMesh, name: str) -> Path:
    return mesh.folder / f"{name}.front"


def _listens(process: Process) -> bool:
    try:
        socket.create_connection((process.host, process.port), timeout=1.0).close()
    except OSError:
        return False
    return True
