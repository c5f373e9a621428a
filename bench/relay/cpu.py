"""CPU time that processes have used, from the operating system: in ns, not in ticks of 10 ms, where it tells them."""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")


def used_s(pids: Iterable[int], *, children: bool = True) -> float:
    """Seconds that the processes, all their threads and (unless told otherwise) their children have run so far."""
    total_ns = 0
    for pid in pids:
        family = psutil.Process(pid).children(recursive=True) if children else []
        for each in [pid, *(child.pid for child in family)]:
            total_ns += sum(_task_ns(task) for task in Path(f"/proc/{each}/task").iterdir())
    return total_ns / 1e9


def _task_ns(task: Path) -> int:
    try:
        return int((task / "schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        pass  # the thread has just ended, or this kernel has no such file
    try:
        # utime and stime are the 14th and 15th field; the 2nd may have blanks, and ends with a bracket.
        fields = (task / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(fields[11]) + int(fields[12])) * _TICK_NS
