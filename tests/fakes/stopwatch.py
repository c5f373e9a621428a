"""Times what a test bounds, less what a busy machine adds to it."""

import time
from pathlib import Path

_SCHEDSTAT = Path("/proc/thread-self/schedstat")


class Stopwatch:
    """Runs from when it is made. Read it on the thread that made it: the event loop's.

    Time for which this thread was ready to run and other processes had the processors is the machine's, not the
    code's, and is left out where Linux tells it. A loop that computes or blocks is the code's fault, and counts.
    """

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._waited_s = _waited_s(_SCHEDSTAT)

    @property
    def s(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._began_s - (_waited_s(_SCHEDSTAT) - self._waited_s)


def waited_s(pid: int) -> float:
    """How long the threads of a process have waited for a processor, together; 0 where Linux does not tell."""
    return sum(_waited_s(thread / "schedstat") for thread in Path(f"/proc/{pid}/task").glob("*"))


def _waited_s(schedstat: Path) -> float:
    """A thread's wait, ever: the second figure, in ns (sched-stats.rst)."""
    try:
        return int(schedstat.read_text().split()[1]) / 1e9
    except OSError:
        return 0.0
