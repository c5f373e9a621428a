"""A budget that fills up again: so many at once, so many a second."""

from stoker_common.clock import Clock


class Bucket:
    """Looks at the clock when it seems empty, so that taking costs a subtraction."""

    __slots__ = ("_burst", "_clock", "_filled_s", "_left", "_per_s")

    def __init__(self, burst: float, per_s: float, clock: Clock) -> None:
        self._burst = self._left = float(burst)
        self._per_s = per_s
        self._clock = clock
        self._filled_s = clock()

    def take(self, count: float = 1.0) -> bool:
        """Take so many. False if there are not as many, and then they are not taken."""
        if self._left < count:
            now_s = self._clock()
            self._left = min(self._burst, self._left + (now_s - self._filled_s) * self._per_s)
            self._filled_s = now_s
            if self._left < count:
                return False
        self._left -= count
        return True

    def earn(self, count: float) -> None:
        """Give so many back, up to the burst."""
        self._left = min(self._burst, self._left + count)
