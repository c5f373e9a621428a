"""A line through points of which older ones count less: what one more of something takes, beside what any takes."""

# A point's variance grows with its size, as a prompt's time does with its length: sizes are weighted down by
# themselves, lest a few long ones decide alone. Below this one all count alike.
_SMALLEST = 64.0
# Where all points have nearly the same size, what any takes cannot be told apart, and all is laid to the size: a spread
# of a seventh of the mean (0.02 of its square) counts as much as that.
_SAME = 0.02
# Of all that points take, at least so much is laid to their sizes: noise must not make them free.
_LEAST = 0.1
# What is known from elsewhere counts as so many points whose sizes differ as much as they are.
_USUAL = 8.0


class DecayedLine:
    """Points of size and time whose older ones count half as much every `half_life_s`; but where points are rare, a
    new one takes no more from them than it would of the latest `least_points`."""

    __slots__ = ("_at", "_half_life_s", "_kept_least", "_last", "_sums")

    def __init__(self, half_life_s: float, least_points: int = 1) -> None:
        self._half_life_s = half_life_s
        self._kept_least = 1.0 - 1.0 / least_points
        self._sums = (0.0,) * 5
        self._last = (0.0, 0.0)
        self._at = 0.0

    def add(self, size: float, took: float, now: float) -> None:
        """Something of that `size`, more than 0, took so long."""
        kept = max(self._kept_least, 0.5 ** ((now - self._at) / self._half_life_s))
        self._sums = _plus(self._sums, kept, size, took, 1.0)
        self._last = (size, took)
        self._at = now

    def extend(self, size: float) -> None:
        """The latest point was larger by that."""
        before, took = self._last
        self._sums = _plus(_plus(self._sums, 1.0, before, took, -1.0), 1.0, before + size, took, 1.0)
        self._last = (before + size, took)

    @property
    def slope(self) -> float:
        """What one more takes; 0 while there is no point. Age alone does not change it."""
        return self.slope_toward(0.0)

    def slope_toward(self, usual: float) -> float:
        """The same, for who knows from elsewhere what one usually takes: that is believed where points are few, or all
        of nearly the same size. 0: nobody knows."""
        weight, x, y, xx, xy = self._sums
        if weight <= 0.0 or x <= 0.0:
            return 0.0
        through_zero = xy / xx
        mean = x / weight
        spread, both = xx / weight - mean * mean, xy / weight - mean * y / weight
        same = _SAME * mean * mean
        if usual:
            # Points weigh by their inverse size, so that this is how many there are, about.
            same += _USUAL / (weight * mean) * mean * mean
        slope = (both + same * (usual or through_zero)) / (spread + same)
        return min(max(slope, _LEAST * through_zero), through_zero)


def _plus(
    sums: tuple[float, ...], kept: float, size: float, took: float, times: float
) -> tuple[float, float, float, float, float]:
    weight, x, y, xx, xy = sums
    share = times / max(size, _SMALLEST)
    return (
        weight * kept + share,
        x * kept + share * size,
        y * kept + share * took,
        xx * kept + share * size * size,
        xy * kept + share * size * took,
    )
