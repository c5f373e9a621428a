"""CPU time that processes have used, from the operating system: in ns, not in ticks of 10 ms."""

from collections.abc import Iterable
from pathlib import Path

import psutil


def used_s(pids: Iterable[int]) -> float:
    """Seconds that the processes, their children and all their threads have run so far."""
    total_ns = 0
    for pid in pids:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total_ns += sum(_task_ns(task) for task in Path(f"/proc/{process.pid}/task").iterdir())
    return total_ns / 1e9


def _task_ns(task: Path) -> int:
    try:
        return int((task / "schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0  # the thread has just ended
