"""Jittered exponential backoff, so that a fleet does not come back in step after an outage."""

import random


class Backoff:
    """Delays that double from `first_s` to `most_s`, each drawn from its upper half ("equal jitter")."""

    def __init__(self, rng: random.Random, first_s: float, most_s: float) -> None:
        self._rng = rng
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s

    def delay_s(self) -> float:
        """The next delay, longer from call to call."""
        delay_s = self._next_s * self._rng.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, self._most_s)
        return delay_s

    def reset(self) -> None:
        """Start from the shortest delay again: something worked."""
        self._next_s = self._first_s
