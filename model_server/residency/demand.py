"""How often a model is asked for: requests a second, older ones counting half as much every minute."""

import math

# Long enough that a model which is asked for now and then is not forgotten, short enough to follow the day.
HALF_LIFE_S = 60.0
# A single request just after the start is no rush.
_SHORTEST_S = 10.0


class Demand:
    """One model's demand, watched since `now_s`."""

    __slots__ = ("_at_s", "_requests", "_since_s")

    def __init__(self, now_s: float = 0.0) -> None:
        self._requests = 0.0
        self._at_s = 0.0
        self._since_s = now_s

    def add(self, now_s: float) -> None:
        """Somebody asked."""
        self._requests = self._kept(now_s) + 1.0
        self._at_s = now_s

    def per_s(self, now_s: float) -> float:
        """Requests a second: what steady demand of that rate would have left since it is watched."""
        watched_s = max(_SHORTEST_S, now_s - self._since_s)
        return self._kept(now_s) * math.log(2) / HALF_LIFE_S / -math.expm1(-watched_s * math.log(2) / HALF_LIFE_S)

    def _kept(self, now_s: float) -> float:
        return self._requests * math.exp2(-max(0.0, now_s - self._at_s) / HALF_LIFE_S)
