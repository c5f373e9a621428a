"""A server without an accelerator: what its processes take of the machine."""

import os
import time
from collections.abc import Callable

import psutil

from model_server.record import Usage

# Finding the processes reads all of /proc; an engine's come and go seldom.
_FIND_EVERY_S = 10.0


class Host:
    """Implements `model_server.record.Device` for a CPU: the server's own processes and all below them."""

    def __init__(self, process: psutil.Process | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._process = process or psutil.Process()
        self._clock = clock
        self._cores = _cores()
        self._memory_bytes = psutil.virtual_memory().total
        self._tree: list[psutil.Process] = []
        self._found_at = -_FIND_EVERY_S
        self._read_at = clock()
        self._cpu_s: dict[psutil.Process, float] = {}

    def read(self) -> Usage:
        """Share of this machine's cores that they used since the last read, and of its memory that they hold."""
        now = self._clock()
        elapsed_s = now - self._read_at
        if now - self._found_at >= _FIND_EVERY_S:
            self._tree = [self._process, *self._process.children(recursive=True)]
            self._found_at = now
        cpu_s: dict[psutil.Process, float] = {}
        rss_bytes = 0
        for process in self._tree:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    rss_bytes += process.memory_info().rss
            except psutil.NoSuchProcess:
                self._found_at = -_FIND_EVERY_S
                continue
            cpu_s[process] = times.user + times.system
        used_s = sum(total - self._cpu_s[process] for process, total in cpu_s.items() if process in self._cpu_s)
        self._cpu_s = cpu_s
        self._read_at = now
        return Usage(
            utilization=min(max(used_s / elapsed_s / self._cores, 0.0), 1.0) if elapsed_s > 0.0 else 0.0,
            memory_usage=min(rss_bytes / self._memory_bytes, 1.0),
        )

    def check(self) -> None:
        """A CPU is there as long as this program is."""


def _cores() -> int:
    """How many cores these processes may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
