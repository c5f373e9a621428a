"""How many retries the router allows itself before first chunks. Pure, on an injected clock.

A fleet that is in trouble must not get more requests for it: retries are bounded by a share of the requests of the last
ten seconds, and a fixed rate so that a quiet router may retry at all (finagle's RetryBudget, with its window).
"""

from collections import deque
from dataclasses import dataclass

from stoker_common.clock import Clock


@dataclass(frozen=True, slots=True)
class RetryBudgetRules:
    """`share` of the requests, and `per_s` beside it, over `window_s` (whole seconds)."""

    share: float = 0.2
    per_s: float = 10.0
    window_s: int = 10


@dataclass(slots=True)
class _Second:
    number: int
    requests: int = 0
    retries: int = 0


class RetryBudget:
    """Counts requests and retries by the second, and forgets what is older than the window."""

    def __init__(self, rules: RetryBudgetRules, clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self._seconds: deque[_Second] = deque()
        self._requests = 0
        self._retries = 0

    def request(self) -> None:
        """A request came, which may be retried later."""
        self._now().requests += 1
        self._requests += 1

    def take(self) -> bool:
        """Whether one more retry is within the budget; if so, it is taken."""
        second = self._now()
        if self._retries + 1 > self._rules.share * self._requests + self._rules.per_s * self._rules.window_s:
            return False
        second.retries += 1
        self._retries += 1
        return True

    def _now(self) -> _Second:
        number = int(self._clock())
        seconds = self._seconds
        while seconds and seconds[0].number <= number - self._rules.window_s:
            old = seconds.popleft()
            self._requests -= old.requests
            self._retries -= old.retries
        if not seconds or seconds[-1].number != number:
            seconds.append(_Second(number))
        return seconds[-1]
