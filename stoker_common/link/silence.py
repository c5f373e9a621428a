"""How long a link has been silent, less what the router itself slept through. Pure: fed with ticks and signs."""


class Silence:
    """Sums up silence tick by tick.

    A tick counts for `longest_tick_s` at most: whoever watches, and was itself stopped or blocked, must not take its
    own absence for the other's.
    """

    def __init__(self, limit_s: float, longest_tick_s: float, now_s: float) -> None:
        self._limit_s = limit_s
        self._longest_tick_s = longest_tick_s
        self._ticked_at_s = now_s
        self._silent_s = 0.0

    def heard(self) -> None:
        """A sign of life came."""
        self._silent_s = 0.0

    def tick(self, now_s: float) -> bool:
        """Time has passed. Whether the other has been silent for too long."""
        self._silent_s += min(max(0.0, now_s - self._ticked_at_s), self._longest_tick_s)
        self._ticked_at_s = now_s
        return self._silent_s > self._limit_s
