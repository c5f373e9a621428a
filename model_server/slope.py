"""What one more of something takes, where points tell it for sure; else nothing is claimed."""

import math

# A slope is believed once it is told from none by so many standard errors, of so many points at least.
_SURE, _FEWEST = 3.0, 8.0


class SureSlope:
    """Least squares over points whose older ones count half as much every `half_life_s`."""

    __slots__ = ("_at", "_half_life_s", "_sums")

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        # Of points, sizes, times, and their products.
        self._sums = (0.0,) * 6
        self._at = 0.0

    def add(self, size: float, took: float, now: float) -> None:
        """Something of that `size` took so long."""
        kept = 0.5 ** ((now - self._at) / self._half_life_s)
        n, x, y, xx, xy, yy = self._sums
        self._at = now
        self._sums = (
            n * kept + 1.0,
            x * kept + size,
            y * kept + took,
            xx * kept + size * size,
            xy * kept + size * took,
            yy * kept + took * took,
        )

    @property
    def value(self) -> float:
        """What one more takes; 0 while that is not sure. Age alone does not change it."""
        n, x, y, xx, xy, yy = self._sums
        if n < _FEWEST:
            return 0.0
        spread, both, times = xx - x * x / n, xy - x * y / n, yy - y * y / n
        if spread <= 1e-9 * xx or both <= 0.0:
            return 0.0
        slope = both / spread
        error = math.sqrt(max(0.0, times - slope * both) / (n - 2) / spread)
        return slope if slope > _SURE * error else 0.0
