"""When a process that ended is started again, and when not any more. Pure: the clock and the random source come in."""

import random
from collections import deque
from dataclasses import dataclass, field

# What a process exits with when its settings or its command line are wrong: starting it again changes nothing.
EXIT_USAGE = 2


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Exponential backoff with full jitter above its half, and a limit of failures within a window.

    The window has to hold `max_failures` starts of the slowest process (vLLM: 30 s on two cores) with their backoffs.
    """

    max_failures: int = 5
    window_s: float = 300.0
    first_s: float = 0.5
    most_s: float = 15.0

    def delay_s(self, failures: int, rng: random.Random) -> float:
        """The wait before the next start, after so many failures within the window (at least 1)."""
        whole_s = min(self.most_s, self.first_s * 2.0 ** (failures - 1))
        return whole_s * (0.5 + rng.random() / 2)


@dataclass(slots=True)
class Failures:
    """One process's failures within the policy's window."""

    policy: RestartPolicy
    rng: random.Random
    _at_s: deque[float] = field(default_factory=deque)

    def next_start_s(self, now_s: float, exit_code: int) -> float | None:
        """Record a failure; the seconds to wait before the next start, None to give up."""
        while self._at_s and self._at_s[0] <= now_s - self.policy.window_s:
            self._at_s.popleft()
        self._at_s.append(now_s)
        if exit_code == EXIT_USAGE or len(self._at_s) >= self.policy.max_failures:
            return None
        return self.policy.delay_s(len(self._at_s), self.rng)

    @property
    def count(self) -> int:
        """Failures in the window as of the last one."""
        return len(self._at_s)
