"""How much more of a prompt's time its later tokens take: each attends to all before it.

    time = what any prompt takes + a x tokens + b x tokens x (those before them on average)

a / b is the distance from a prompt's beginning at which a token takes twice as long as the first. It belongs to the
model and its device, and not to the load, so that it is fitted over minutes; only long prompts tell it.
"""

import math

# A distance is believed once it is told from none by so many standard errors.
_SURE = 3.0
# A point's variance grows with its size, as in stoker_common/line.py.
_SMALLEST = 64.0
# No model's attention costs as much as all the rest so soon.
_NEAREST = 1000.0
# With fewer points there is no telling how much they err.
_FEWEST = 16.0


class AttentionFit:
    """Weighted least squares over points whose older ones count half as much every `half_life_s`."""

    __slots__ = ("_at", "_count", "_half_life_s", "_last", "_sums", "_weight")

    def __init__(self, half_life_s: float = 300.0) -> None:
        self._half_life_s = half_life_s
        self._count = self._weight = 0.0
        # Of x, z, y, xx, xz, zz, xy, zy, yy: x tokens, z tokens times those before them, y time.
        self._sums: tuple[float, ...] = (0.0,) * 9
        self._last = (0.0, 0.0, 0.0)
        self._at = 0.0

    def add(self, tokens: float, after: float, took: float, now: float) -> None:
        """`tokens` of a prompt, more than 0, that come after `after` others of it took so long."""
        kept = 0.5 ** ((now - self._at) / self._half_life_s)
        self._at = now
        self._count, self._weight = self._count * kept, self._weight * kept
        self._sums = tuple(each * kept for each in self._sums)
        self._last = (tokens, tokens * (after + tokens / 2), took)
        self._take(1.0)

    def extend(self, tokens: float, after: float) -> None:
        """The latest point had these as well."""
        self._take(-1.0)
        x, z, y = self._last
        self._last = (x + tokens, z + tokens * (after + tokens / 2), y)
        self._take(1.0)

    @property
    def tokens(self) -> float:
        """After so many others a token takes twice as long; 0 while that is not told."""
        count, weight = self._count, self._weight
        if count < _FEWEST:
            return 0.0
        x, z, y, xx, xz, zz, xy, zy, yy = (each / weight for each in self._sums)
        xx, xz, zz, xy, zy, yy = xx - x * x, xz - x * z, zz - z * z, xy - x * y, zy - z * y, yy - y * y
        both = xx * zz - xz * xz
        if xx <= 0.0 or both <= 1e-9 * xx * zz:
            return 0.0
        a, b = (zz * xy - xz * zy) / both, (xx * zy - xz * xy) / both
        if a <= 0.0 or b <= 0.0:
            return 0.0
        left = max(0.0, yy - a * xy - b * zy)
        if b < _SURE * math.sqrt(left * xx / both / (count - 3)):
            return 0.0
        return max(_NEAREST, a / b)

    def _take(self, times: float) -> None:
        x, z, y = self._last
        share = times / max(x, _SMALLEST)
        self._count += times
        self._weight += share
        news = (x, z, y, x * x, x * z, z * z, x * y, z * y, y * y)
        self._sums = tuple(old + share * new for old, new in zip(self._sums, news, strict=True))
