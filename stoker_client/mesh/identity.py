"""Which process a pid means: a pid comes back, a pid with its start time and the machine's boot does not."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """One life of one process. `started_ticks` is /proc's: clock ticks since boot; `boot` is the boot's id."""

    pid: int
    started_ticks: int
    boot: str


def identify(pid: int) -> Identity | None:
    """Who `pid` is now, None if there is no such process or only what is left of one (a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name may hold spaces and parentheses: fields count from behind its last one (man 5 proc_pid_stat).
    state, *fields = stat.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return Identity(pid, int(fields[18]), Path("/proc/sys/kernel/random/boot_id").read_text().strip())


def me() -> Identity:
    """Who this process is."""
    myself = identify(os.getpid())
    if myself is None:
        raise RuntimeError("/proc does not show this process: the local mesh needs Linux with /proc mounted")
    return myself


def alive(identity: Identity) -> bool:
    """Whether that very process still runs."""
    return identify(identity.pid) == identity


def send(identity: Identity, number: signal.Signals) -> bool:
    """Signal that very process, never another that has its pid; False if it no longer runs.

    The descriptor is taken first and the identity checked after: what the descriptor holds cannot change any more.
    """
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not alive(identity):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
