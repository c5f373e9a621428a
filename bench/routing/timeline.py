"""Virtual time: what happens, in order. An hour passes as fast as its events can be worked off."""

import heapq
from collections.abc import Callable
from itertools import count


class Timeline:
    """Callbacks at times, in seconds from the run's beginning. What is due at once happens in order of asking."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def __call__(self) -> float:
        """Now, as the router's clock."""
        return self.now_s

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """Do it then; times that have passed are now."""
        heapq.heappush(self._due, (max(when_s, self.now_s), next(self._order), what))

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        """Do it so much later."""
        heapq.heappush(self._due, (self.now_s + delay_s, next(self._order), what))

    def run(self, until_s: float = float("inf")) -> None:
        """Work off what is due, until nothing is or the time has come."""
        due = self._due
        while due and due[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(due)
            what()
