"""Faults of a machine: its clock, its file descriptors, its disk."""

import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.chaos.fault import Inject, Scene, victim
from tests.chaos.mesh import ZONES
from tests.chaos.preparing import restarted
from tests.chaos.processes import Process

_FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"
_HOUR_S = 3600
_KNOCKS = 20


def why_no_faketime() -> str:
    """What is missing to change a process's clock; empty if nothing is."""
    return "" if any(Path("/").glob(_FAKETIME[1:])) else "no libfaketime (Debian's package of that name)"


def why_no_mount() -> str:
    """What is missing to mount a small disk; empty if nothing is."""
    return "" if os.geteuid() == 0 else "not root: no disk can be mounted"


@contextmanager
def clock(scene: Scene) -> Iterator[Inject]:
    """The wall clock of a router and of a server in each zone jumps an hour, forwards or backwards.

    libfaketime stands between those processes and CLOCK_REALTIME; CLOCK_MONOTONIC is left, since no machine's jumps.
    """
    mesh, rng = scene.mesh, scene.rng
    (library,) = Path("/").glob(_FAKETIME[1:])
    chosen = [mesh.router(rng.choice(ZONES)), *(rng.choice(mesh.of("server", zone)) for zone in ZONES)]
    files = {process.name: mesh.folder / f"{process.name}.clock" for process in chosen}
    for process in chosen:
        files[process.name].write_text("+0\n")
        process.environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(files[process.name]),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Seconds until the file is looked at again.
            "FAKETIME_CACHE_DURATION": "1",
        }

    def inject() -> str:
        jumps = {process.name: rng.choice((-_HOUR_S, _HOUR_S)) for process in chosen}
        for name, jump_s in jumps.items():
            fresh = files[name].with_suffix(".new")
            fresh.write_text(f"{jump_s:+d}\n")
            fresh.replace(files[name])
        return "wall clocks: " + ", ".join(f"{name} {jump_s / _HOUR_S:+g} h" for name, jump_s in jumps.items())

    try:
        with restarted(mesh, [(process, ()) for process in chosen]):
            yield inject
    finally:
        for process in chosen:
            process.environ = {}


@contextmanager
def descriptors(scene: Scene) -> Iterator[Inject]:
    """A server and a router get no file descriptor more than they have: no connection, in or out, and many knock."""
    mesh, rng = scene.mesh, scene.rng
    knocking: list[socket.socket] = []
    limited: dict[int, tuple[int, int]] = {}

    def limit(process: Process) -> int:
        pid = process.pid
        used = len(os.listdir(f"/proc/{pid}/fd"))
        limited[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # The limit is on the highest number, and numbers that were closed are free again.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, limited[pid][1]))
        return used

    def inject() -> str:
        chosen = [victim(mesh, rng), mesh.router(rng.choice(ZONES))]
        used = [limit(process) for process in chosen]
        for process in chosen:
            knocking.extend(process.place.run(partial(_knock, process)))
        return "no more file descriptors for " + " and ".join(
            f"{process.name} ({count} open)" for process, count in zip(chosen, used, strict=True)
        )

    try:
        yield inject
    finally:
        for each in knocking:
            each.close()
        for pid, limits in limited.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def _knock(process: Process) -> list[socket.socket]:
    """Connections that the kernel takes and the process cannot."""
    return [socket.create_connection((process.host, process.port), timeout=1.0) for _ in range(_KNOCKS)]


@contextmanager
def disk(scene: Scene) -> Iterator[Inject]:
    """The disk that a server's and a router's logs are on is full."""
    mesh, rng = scene.mesh, scene.rng
    chosen = [rng.choice(mesh.of("server")), mesh.router(rng.choice(ZONES))]
    small = mesh.folder / "small-disk"
    small.mkdir(exist_ok=True)
    logs = {process.name: process.log for process in chosen}

    def inject() -> str:
        with (small / "filler").open("wb", buffering=0) as filler:
            block = bytes(4096)
            try:
                while True:
                    filler.write(block)
            except OSError:
                pass  # full: that is what it is for
        return f"no room for the logs of {' and '.join(logs)}"

    with ExitStack() as held:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
        # Lazily: processes that are about to end still have their logs open there.
        held.callback(subprocess.run, ["umount", "--lazy", str(small)], check=True)
        for process in chosen:
            process.log = small / process.log.name
        try:
            with restarted(mesh, [(process, ()) for process in chosen]):
                yield inject
                (small / "filler").unlink(missing_ok=True)
                for process in chosen:
                    # Back to their own logs with the restart that follows.
                    process.log = logs[process.name]
        finally:
            for process in chosen:
                process.log = logs[process.name]
