"""Whether a request of which nothing went out yet may be tried again, and how it asks then."""

from dataclasses import dataclass, field, replace

from router.errors import EndpointError, Fault
from router.ledger import Key
from router.metrics import RouterMetrics
from router.outlook import Ask
from router.resume import ResumeRules
from router.retry_budget import RetryBudget
from router.room import Rooms

# Whatever was asked for has begun nowhere, or goes on as it was.
DID_NOTHING = frozenset({Fault.LINK, Fault.MOVED, Fault.OUTBID})


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How often a request is tried before its first chunk."""

    # A server that was never reached has done no work and does not count (gRPC A6's transparent retry).
    max_attempts: int = 3
    # How long a broken stream waits for a server to go on with: a supervised server is back within seconds.
    hold_s: float = 10.0
    resume: ResumeRules = field(default_factory=ResumeRules)
    # What callers are told to wait when nothing is left: a restarted server is in the catalog about then.
    retry_after_s: float = 1.0


class Retries:
    """A router's."""

    def __init__(self, rules: RetryRules, budget: RetryBudget, rooms: Rooms, metrics: RouterMetrics) -> None:
        self._rules = rules
        self._budget = budget
        self._rooms = rooms
        self._metrics = metrics

    def ask_anew(self, ask: Ask, tried: set[Key], counted: int, failure: EndpointError | None) -> Ask | None:
        """How to ask for a server, with `tried` less those that may have room by now; None if it may not again.
        `counted` tries did something; `failure` is the last one's, None before the first."""
        if failure is None:
            self._budget.request()
            return ask
        if counted >= self._rules.max_attempts or not self._may(failure):
            return None
        # One that was overloaded may have room when it is this request's turn.
        tried -= self._rooms.overloaded_now()
        return replace(ask, hold=failure.fault is not Fault.SERVER)

    def _may(self, failure: EndpointError) -> bool:
        """Whether the budget has one left. Moving what a lost server had adds no load, and needs none."""
        if failure.fault in DID_NOTHING or self._budget.take():
            return True
        self._metrics.retries_spared.inc()
        return False
