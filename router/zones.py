"""How much of its load a zone keeps when some of its endpoints are out. Pure.

Envoy's priority rule: a zone carries min(100 %, 1.4 x its healthy share), the others the rest. Going down counts at
once, coming back gradually, so that load does not swing with an endpoint or a zone that comes and goes.
"""

OVERPROVISIONED = 1.4
# Below this share of healthy endpoints, and with no zone to make up for it, ejections on suspicion are ignored.
PANIC_BELOW = 0.5
RISE_S = 10.0


def load_share(healthy_share: float) -> float:
    """The share of its own load that a zone keeps."""
    return min(1.0, OVERPROVISIONED * healthy_share)


class ZoneShare:
    """One zone's share of its own load: falls at once, rises from none to all within `RISE_S`."""

    __slots__ = ("_at_s", "_share", "_target")

    def __init__(self) -> None:
        self._share = self._target = 1.0
        self._at_s = 0.0

    def set(self, target: float, now_s: float) -> None:
        """Endpoints came or went."""
        self._share = min(self.at(now_s), target)
        self._target = target
        self._at_s = now_s

    def at(self, now_s: float) -> float:
        """The share now."""
        return min(self._target, self._share + (now_s - self._at_s) / RISE_S)
