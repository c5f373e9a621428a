"""The breaker: which endpoints this router's own experience has taken out.

                 5 failures in a row, or a dead link
        ALIVE ────────────────────────────────────────► EJECTED
          ▲                                              │    ▲
          │ the probe succeeds              its time ends│    │ the probe fails, or its caller went away
          │                                              ▼    │
          └─────────────────────────────────────────── PROBING

Ejection lasts 30 s times the ejections in a row, at most 300 s, jittered so that routers do not probe together (Envoy's
outlier detection, gRPC A50). Errors of the caller's making never count. A new epoch is a new server, and alive.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from router.ledger import Key
from stoker_common.clock import Clock


class BreakerState(Enum):
    """What experience says of an endpoint."""

    ALIVE = "alive"
    EJECTED = "ejected"
    PROBING = "probing"


@dataclass(frozen=True, slots=True)
class EjectionRules:
    """When an endpoint is ejected and for how long."""

    consecutive_failures: int = 5
    base_s: float = 30.0
    max_s: float = 300.0
    jitter: float = 0.1


@dataclass(slots=True)
class _Breaker:
    state: BreakerState = BreakerState.ALIVE
    failures: int = 0
    ejections: int = 0
    until_s: float = 0.0


_ALIVE = _Breaker()


class Breakers:
    """The breakers of all endpoints, by server and epoch."""

    def __init__(self, rules: EjectionRules, clock: Clock, rng: random.Random) -> None:
        self._rules = rules
        self._clock = clock
        self._rng = rng
        self._breakers: dict[Key, _Breaker] = {}

    def state(self, key: Key) -> BreakerState:
        """The endpoint's state, as it is when nothing happens now."""
        return self._breakers.get(key, _ALIVE).state

    def refuses(self, key: Key) -> bool:
        """Whether the endpoint gets no request now: its ejection has not ended, or a probe is under way."""
        breaker = self._breakers.get(key)
        if breaker is None or breaker.state is BreakerState.ALIVE:
            return False
        return breaker.state is BreakerState.PROBING or self._clock() < breaker.until_s

    def ejected_for_s(self, key: Key) -> float:
        """Seconds until the endpoint may be probed; 0 if it is not ejected."""
        breaker = self._breakers.get(key, _ALIVE)
        return max(0.0, breaker.until_s - self._clock()) if breaker.state is BreakerState.EJECTED else 0.0

    def dispatched(self, key: Key) -> None:
        """A request goes there. If its ejection has ended, the request is the probe."""
        breaker = self._breakers.get(key)
        if breaker is not None and breaker.state is BreakerState.EJECTED and self._clock() >= breaker.until_s:
            breaker.state = BreakerState.PROBING

    def answered(self, key: Key) -> None:
        """Its first token came: enough for a probe, which may go on for minutes; not enough to forget its failures."""
        if self.state(key) is BreakerState.PROBING:
            self.succeeded(key)

    def reached(self, key: Key) -> None:
        """Its link is up again: an ejection ends now, and the next request is the probe."""
        breaker = self._breakers.get(key)
        if breaker is not None and breaker.state is BreakerState.EJECTED:
            breaker.until_s = self._clock()

    def succeeded(self, key: Key) -> None:
        """It answered well, to the end."""
        self._breakers.pop(key, None)

    def failed(self, key: Key, *, dead_link: bool) -> None:
        """It failed. A dead link ejects at once, anything else when it has failed often enough in a row."""
        breaker = self._breakers.setdefault(key, _Breaker())
        breaker.failures += 1
        if breaker.state is BreakerState.EJECTED:
            return  # requests that were under way when it was ejected tell nothing new
        if dead_link or breaker.state is BreakerState.PROBING or breaker.failures >= self._rules.consecutive_failures:
            self._eject(breaker)

    def undecided(self, key: Key) -> None:
        """A request ended without telling anything of its endpoint: its caller went away, or the server was busy."""
        breaker = self._breakers.get(key)
        if breaker is not None and breaker.state is BreakerState.PROBING:
            breaker.state = BreakerState.EJECTED  # its time has ended: the next request is the probe

    def keep(self, keys: Iterable[Key]) -> None:
        """Forget the endpoints that are gone."""
        kept = set(keys)
        for key in [key for key in self._breakers if key not in kept]:
            del self._breakers[key]

    def _eject(self, breaker: _Breaker) -> None:
        breaker.state = BreakerState.EJECTED
        breaker.ejections += 1
        lasts_s = min(self._rules.base_s * breaker.ejections, self._rules.max_s)
        breaker.until_s = self._clock() + lasts_s * (1 + self._rng.uniform(-self._rules.jitter, self._rules.jitter))
