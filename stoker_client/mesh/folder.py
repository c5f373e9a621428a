"""A mesh's run folder: one mesh at a time, fresh logs, fresh Consul data."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stoker_client.mesh import state

LOGS = "logs"
CONSUL = "consul"


class AlreadyRuns(Exception):
    """A mesh runs in this folder."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder for one mesh. Raises AlreadyRuns. The kernel lets go of it however this process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRuns(_who(folder)) from None
        yield
    finally:
        os.close(descriptor)


def cleared(folder: Path) -> Path:
    """Remove what an earlier mesh left in the folder; the folder for logs."""
    shutil.rmtree(folder / CONSUL, ignore_errors=True)
    shutil.rmtree(folder / LOGS, ignore_errors=True)
    state.remove(folder)
    logs = folder / LOGS
    logs.mkdir(parents=True)
    return logs


def _who(folder: Path) -> str:
    running = state.read(folder)
    pid = f" (its supervisor is process {running.supervisor.pid})" if running is not None else ""
    return (
        f"a mesh already runs in {folder}{pid}: `stoker down` ends it; "
        "--run-folder and --port-base start another beside it"
    )
