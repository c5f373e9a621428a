"""How much of its load a zone keeps when some of its endpoints are out, and when it panics. Pure but for the clock.

Envoy's priority rule: a zone carries min(100 %, 1.4 x its healthy share), the others the rest. Going down counts at
once, coming back gradually, so that load does not swing with an endpoint or a zone that comes and goes. A zone panics
where less than half of it is well and no other zone makes up for it.
"""

from collections import Counter
from collections.abc import Callable, Mapping

from router.ledger import Key
from stoker_common.clock import Clock

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


class Zones:
    """All endpoints' zones, and how well each zone is."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._of: Mapping[Key, str] = {}
        self._shares: dict[str, ZoneShare] = {}
        self._panicking: frozenset[str] = frozenset()

    def keep(self, zones: Mapping[Key, str]) -> None:
        """These are all endpoints, with their zones. Call `count` then."""
        self._of = dict(zones)

    def of(self, key: Key) -> str | None:
        """The endpoint's zone; None for one that is not known any more."""
        return self._of.get(key)

    def beside(self, key: Key) -> list[Key]:
        """The endpoints of the same zone, itself among them."""
        zone = self.of(key)
        return [] if zone is None else [other for other, its in self._of.items() if its == zone]

    def count(self, out: Callable[[Key], bool]) -> None:
        """An endpoint came, went, or is `out` or no more: what each zone keeps of its load, and which panic."""
        total = Counter(self._of.values())
        gone = Counter(zone for key, zone in self._of.items() if out(key))
        healthy = {zone: 1.0 - gone[zone] / count for zone, count in total.items()}
        now_s = self._clock()
        for zone, share in healthy.items():
            self._shares.setdefault(zone, ZoneShare()).set(load_share(share), now_s)
        for zone in [zone for zone in self._shares if zone not in healthy]:
            del self._shares[zone]
        enough = sum(load_share(share) for share in healthy.values()) >= 1.0
        self._panicking = frozenset(zone for zone, share in healthy.items() if share < PANIC_BELOW and not enough)

    def panics(self, key: Key) -> bool:
        """Whether the endpoint's zone does."""
        return bool(self._panicking) and self.of(key) in self._panicking

    def share(self, zone: str) -> float:
        """The share of its own load that the zone keeps: below 1 while endpoints of it are out, and a bit longer."""
        share = self._shares.get(zone)
        return 1.0 if share is None else share.at(self._clock())

    def shares(self) -> Mapping[str, float]:
        """By zone."""
        return {zone: self.share(zone) for zone in list(self._shares)}
