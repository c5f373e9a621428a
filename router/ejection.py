"""The breaker: which endpoints this router's own experience has taken out.

            5 failures in a row, half of >= 20 requests failed, first tokens or streams far slower than predicted
            and than the others', or a dead link
        ALIVE ────────────────────────────────────────► EJECTED
          ▲                                              │    ▲
          │ the probe succeeds:                          │    │ the probe fails, or its caller went away
          │ back, with a share of its            its time│    │
          │ places that grows (ramp.py)              ends▼    │
          └─────────────────────────────────────────── PROBING

Ejection lasts 30 s times the ejections in a row, at most 300 s, jittered so that routers do not probe together (Envoy's
outlier detection, gRPC A50). A link that is up again ends an ejection early: at once the first time, later and later
when it flaps. Errors of the caller's making never count. What was sent before an ejection tells nothing after it.

A dead link is a fact, the rest is suspicion. Suspicion takes out half of a zone at most, and is ignored (panic) where
less than half of a zone is well and no other zone makes up for it. A new epoch is a new server, and alive.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from router import ramp
from router.failure_rate import FailureRate
from router.ledger import Key
from router.slowness import Slowness
from router.zones import Zones
from stoker_common.clock import Clock


class BreakerState(Enum):
    """What experience says of an endpoint."""

    ALIVE = "alive"
    EJECTED = "ejected"
    PROBING = "probing"


class Cause(Enum):
    """Why an endpoint was ejected."""

    LINK = "dead link"
    STALLED = "engine stalled"
    FAILURES = "failures in a row"
    RATE = "failure rate"
    SLOW = "slow"
    PROBE = "probe failed"


# The connection or the engine's own counter says so: no guess.
_FACTS = frozenset({Cause.LINK, Cause.STALLED})


@dataclass(frozen=True, slots=True)
class EjectionRules:
    """When an endpoint is ejected and for how long."""

    consecutive_failures: int = 5
    base_s: float = 30.0
    max_s: float = 300.0
    jitter: float = 0.1
    # How much of a zone suspicion may take out; one endpoint always.
    max_ejected_share: float = 0.5
    # How long a link that broke again must be up before its endpoint is probed, times the breaks before.
    settle_s: float = 5.0


@dataclass(slots=True)
class _Breaker:
    state: BreakerState = BreakerState.ALIVE
    failures: int = 0
    rate: FailureRate = field(default_factory=FailureRate)
    ejections: int = 0
    cause: Cause | None = None
    # Whether a fact speaks against it now: then panic does not bring it back.
    out_of_reach: bool = False
    ejected_at_s: float | None = None
    until_s: float = 0.0
    # An earlier end, because its link is up again.
    early_s: float | None = None
    returned_at_s: float | None = None

    @property
    def ends_s(self) -> float:
        return self.until_s if self.early_s is None else min(self.until_s, self.early_s)

    def stale(self, since_s: float | None) -> bool:
        return since_s is not None and self.ejected_at_s is not None and since_s < self.ejected_at_s


_ALIVE = _Breaker()


class Breakers:
    """The breakers of all endpoints, by server and epoch.

    `since_s`, where a method takes it, is when the request in question was sent; without it, it is taken for news.
    """

    def __init__(self, rules: EjectionRules, clock: Clock, rng: random.Random) -> None:
        self._rules = rules
        self._clock = clock
        self._rng = rng
        self._breakers: dict[Key, _Breaker] = {}
        self._slowness: Slowness[Key] = Slowness()
        self._zones = Zones(clock)
        # Ejections by zone and cause, for metrics.
        self.ejections: Counter[tuple[str, Cause]] = Counter()

    def state(self, key: Key) -> BreakerState:
        """The endpoint's state, as it is when nothing happens now."""
        return self._breakers.get(key, _ALIVE).state

    def cause(self, key: Key) -> str:
        """Why the endpoint is out; empty if it is not."""
        breaker = self._breakers.get(key, _ALIVE)
        return breaker.cause.value if breaker.cause is not None and breaker.state is not BreakerState.ALIVE else ""

    def refuses(self, key: Key) -> bool:
        """Whether the endpoint gets no request now: its ejection has not ended, or a probe is under way."""
        breaker = self._breakers.get(key)
        if breaker is None or breaker.state is BreakerState.ALIVE:
            return False
        return breaker.state is BreakerState.PROBING or self._clock() < breaker.ends_s

    def doubts(self, key: Key) -> bool:
        """Whether its zone panics and only suspicion speaks against it: then it gets requests all the same."""
        return self._zones.panics(key) and not self._breakers.get(key, _ALIVE).out_of_reach

    def ejected_for_s(self, key: Key) -> float:
        """Seconds until the endpoint may be probed; 0 if it is not ejected."""
        breaker = self._breakers.get(key, _ALIVE)
        return max(0.0, breaker.ends_s - self._clock()) if breaker.state is BreakerState.EJECTED else 0.0

    def share(self, key: Key) -> float:
        """The share of its places that the endpoint may use: less than 1 for a while after its return."""
        breaker = self._breakers.get(key)
        if breaker is None or breaker.returned_at_s is None:
            return 1.0
        return ramp.share(self._clock() - breaker.returned_at_s)

    def zone_share(self, zone: str) -> float:
        """The share of its own load that the zone keeps: below 1 while endpoints of it are out, and a bit longer."""
        return self._zones.share(zone)

    @property
    def zone_shares(self) -> Mapping[str, float]:
        """By zone."""
        return self._zones.shares()

    def dispatched(self, key: Key) -> None:
        """A request goes there. If its ejection has ended, the request is the probe."""
        breaker = self._breakers.get(key)
        if breaker is not None and breaker.state is BreakerState.EJECTED and self._clock() >= breaker.ends_s:
            breaker.state = BreakerState.PROBING

    def answered(self, key: Key, since_s: float | None = None) -> None:
        """Its first token came: enough for a probe, which may go on for minutes; not enough to forget its failures."""
        breaker = self._breakers.get(key)
        if breaker is not None and breaker.state is BreakerState.PROBING and not breaker.stale(since_s):
            self._return(key, breaker)

    def timed(self, key: Key, ttft_ms: float, predicted_ms: float, since_s: float | None = None) -> None:
        """Its first token came after `ttft_ms`; the pick had expected `predicted_ms`."""
        breaker, now_s = self._of(key), self._clock()
        if breaker.state is BreakerState.ALIVE and not breaker.stale(since_s):
            self._slowness.observe(key, now_s, ttft_ms, predicted_ms)
            if self._slowness.slow(key, now_s):
                self._suspect(key, breaker, Cause.SLOW)

    def crawls(self, key: Key) -> bool:
        """Its streams run far slower than they did and than the others'. Whether it is out, and they should leave."""
        breaker = self._of(key)
        if breaker.state is BreakerState.ALIVE:
            self._suspect(key, breaker, Cause.SLOW)
        elif breaker.state is BreakerState.EJECTED and self._clock() >= breaker.ends_s:
            self._eject(key, breaker, Cause.SLOW)  # no need to ask what its streams tell
        return breaker.state is not BreakerState.ALIVE and not self.doubts(key)

    def reached(self, key: Key) -> None:
        """Its link is up again: an ejection ends now, or once the link has held for a while if it broke before."""
        breaker = self._breakers.get(key)
        if breaker is None or breaker.state is not BreakerState.EJECTED or not breaker.out_of_reach:
            return
        breaker.out_of_reach = False
        if breaker.cause in _FACTS:
            breaker.early_s = self._clock() + self._rules.settle_s * (breaker.ejections - 1)

    def succeeded(self, key: Key, since_s: float | None = None) -> None:
        """It answered well, to the end."""
        breaker = self._of(key)
        if breaker.stale(since_s):
            return
        if breaker.state is not BreakerState.ALIVE:
            self._return(key, breaker)
        breaker.failures = 0
        breaker.rate.add(self._clock(), failed=False)

    def lost(self, key: Key, cause: Cause = Cause.LINK) -> None:
        """Its link broke, or its engine stands still: a fact, and it ejects at once."""
        breaker = self._of(key)
        if breaker.state is BreakerState.EJECTED:
            breaker.out_of_reach = True
            if breaker.early_s is not None:  # it was up, and broke before it was settled
                breaker.early_s = None
                breaker.ejections += 1
        else:
            self._eject(key, breaker, cause)

    def failed(self, key: Key, *, dead_link: bool, since_s: float | None = None) -> None:
        """A request failed there. A dead link ejects at once, anything else when it has failed often enough."""
        breaker, now_s = self._of(key), self._clock()
        if breaker.state is BreakerState.EJECTED or breaker.stale(since_s):
            return  # requests that were under way when it was ejected tell nothing new
        breaker.failures += 1
        breaker.rate.add(now_s, failed=True)
        if dead_link:
            self._eject(key, breaker, Cause.LINK)
        elif breaker.state is BreakerState.PROBING:
            self._eject(key, breaker, Cause.PROBE)
        elif breaker.failures >= self._rules.consecutive_failures:
            self._suspect(key, breaker, Cause.FAILURES)
        elif breaker.rate.tripped(now_s):
            self._suspect(key, breaker, Cause.RATE)

    def undecided(self, key: Key, since_s: float | None = None) -> None:
        """A request ended without telling anything of its endpoint: its caller went away, or the server was busy."""
        breaker = self._breakers.get(key)
        if breaker is not None and breaker.state is BreakerState.PROBING and not breaker.stale(since_s):
            breaker.state = BreakerState.EJECTED  # its time has ended: the next request is the probe

    def keep(self, zones: Mapping[Key, str]) -> None:
        """These are all endpoints, with their zones; forget the others."""
        self._zones.keep(zones)
        for key in [key for key in self._breakers if key not in zones]:
            del self._breakers[key]
            self._slowness.forget(key)
        self._zones.count(self._out)

    def _of(self, key: Key) -> _Breaker:
        return self._breakers.setdefault(key, _Breaker())

    def _suspect(self, key: Key, breaker: _Breaker, cause: Cause) -> None:
        """Eject, unless too much of its zone is out already."""
        there = self._zones.beside(key)
        if there:
            out = sum(self._out(other) for other in there)
            if out + 1 > max(1.0, self._rules.max_ejected_share * len(there)):
                return
        self._eject(key, breaker, cause)

    def _eject(self, key: Key, breaker: _Breaker, cause: Cause) -> None:
        now_s = self._clock()
        if breaker.returned_at_s is not None:
            # In a row means without having been well for as long as an ejection lasts in between.
            well = int((now_s - breaker.returned_at_s) / self._rules.base_s)
            breaker.ejections = max(0, breaker.ejections - well)
        breaker.state = BreakerState.EJECTED
        breaker.cause = cause
        breaker.out_of_reach = cause in _FACTS
        breaker.ejections += 1
        breaker.failures = 0
        breaker.ejected_at_s = now_s
        breaker.early_s = None
        breaker.returned_at_s = None
        lasts_s = min(self._rules.base_s * breaker.ejections, self._rules.max_s)
        breaker.until_s = now_s + lasts_s * (1 + self._rng.uniform(-self._rules.jitter, self._rules.jitter))
        self.ejections[self._zones.of(key) or "", cause] += 1
        self._zones.count(self._out)

    def _return(self, key: Key, breaker: _Breaker) -> None:
        breaker.state = BreakerState.ALIVE
        breaker.cause = None
        breaker.out_of_reach = False
        breaker.failures = 0
        breaker.rate = FailureRate()
        breaker.returned_at_s = self._clock()
        self._slowness.forget(key)
        self._zones.count(self._out)

    def _out(self, key: Key) -> bool:
        return self.state(key) is not BreakerState.ALIVE
