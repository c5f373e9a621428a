"""A line through what was observed lately: least squares with decay, drawn towards a slope that was known before."""


class Line:
    """y = base + slope x, of which only the slope is asked for."""

    __slots__ = ("_keep", "_trust", "_w", "_x", "_xx", "_xy", "_y")

    def __init__(self, observations: float, trust: float) -> None:
        """About so many `observations` are remembered. `trust` is the spread of x (its variance) from which on they say
        more than the prior.
        """
        self._keep = 1.0 - 1.0 / observations
        self._trust = trust
        self._w = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, x: float, y: float) -> None:
        """One observation."""
        keep = self._keep
        self._w = self._w * keep + 1.0
        self._x = self._x * keep + x
        self._y = self._y * keep + y
        self._xx = self._xx * keep + x * x
        self._xy = self._xy * keep + x * y

    def slope(self, prior: float) -> float:
        """The slope, not below 0; the prior's in so far as nothing was observed."""
        w, trust = self._w, self._trust
        if w <= 0.0:
            return prior
        x, y = self._x / w, self._y / w
        spread, along = max(0.0, self._xx / w - x * x), self._xy / w - x * y
        return max(0.0, (along + trust * prior) / (spread + trust))
