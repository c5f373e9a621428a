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
        return self._kept(now_s) * math.log(2) / HALF_LIFE_S / (1.0 - _faded(self.watched_s(now_s)))

    def watched_s(self, now_s: float) -> float:
        """For how long it has been watched, or as if it had been."""
        return max(_SHORTEST_S, now_s - self._since_s)

    def _kept(self, now_s: float) -> float:
        return self._requests * math.exp2(-max(0.0, now_s - self._at_s) / HALF_LIFE_S)


def fades_in_s(per_s: float, to_per_s: float, watched_s: float) -> float:
    """How long until a demand of `per_s`, watched for so long, has fallen to `to_per_s` if nobody asks; 0 if it has."""
    faded = _faded(watched_s)
    return max(0.0, HALF_LIFE_S * math.log2(per_s / to_per_s * (1.0 - faded) + faded)) if per_s else 0.0


def _faded(s: float) -> float:
    """What so many seconds leave of a request."""
    return math.exp2(-s / HALF_LIFE_S)
