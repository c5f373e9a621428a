"""Which servers have room for one more request, as far as the router knows. Pure but for the marks it keeps.

A router fills a server's batch and lets a few more wait there, so that a place that becomes free is taken at the next
step. Where all have so much, the rest waits in the router, where it can still be put in order, sent elsewhere, or given
up.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from discovery.endpoint import Endpoint
from router.ledger import NOTHING, Account, Key, Ledger
from stoker_common.clock import Clock
from stoker_common.refusal import Refusal

# A server that says it is overloaded is believed for at least and at most so long, whatever it says.
_LEAST_S, _MOST_S = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class RoomRules:
    """What a server is given."""

    # Streams on a server beyond its batch, where no other has room. A place that becomes free is taken within a step
    # instead of a round trip; more would wait in an order that the router cannot change any more.
    waiting_per_server: int = 4
    # Links report at least every 0.5 s. An older report says nothing of the others' streams, and is left out: the
    # server itself refuses what is too much.
    trusted_s: float = 2.0
    # From here on it is the KV cache and not the batch that bounds what runs.
    kv_full: float = 0.9


class Rooms:
    """The room on each server, from the ledger and from what servers said."""

    def __init__(self, rules: RoomRules, ledger: Ledger, clock: Clock) -> None:
        self._rules = rules
        self._ledger = ledger
        self._clock = clock
        self._overloaded: dict[Key, float] = {}

    def full(self, endpoint: Endpoint, account: Account, now_s: float) -> bool:
        """Whether the server gets nothing new now."""
        if self.overloaded((endpoint.server, endpoint.epoch), now_s):
            return True
        # Called for each candidate of each pick: what needs no report comes first.
        streams, most = account.own_streams, endpoint.max_streams
        if now_s < account.reported_at_s + self._rules.trusted_s:
            streams += account.others_streams
            load = account.load
            if load.waiting and load.kv_usage >= self._rules.kv_full:
                most = min(most, load.running)
        return streams >= most + self._rules.waiting_per_server

    def overloaded(self, key: Key, now_s: float) -> bool:
        """Whether the server said that too much waits there, and is still believed."""
        return bool(self._overloaded) and self._overloaded.get(key, 0.0) > now_s

    def refused(self, key: Key, refusal: Refusal) -> None:
        """The server refused a request. If too much waits there, it gets nothing until it is worth trying again."""
        if refusal.reason != "SERVER_OVERLOADED":
            return
        retry_after_s, now_s = refusal.retry_after_s, self._clock()
        self._overloaded = {known: until_s for known, until_s in self._overloaded.items() if until_s > now_s}
        self._overloaded[key] = now_s + min(max(retry_after_s or 0.0, _LEAST_S), _MOST_S)

    def overloaded_now(self) -> set[Key]:
        """The servers that said so and are still believed."""
        now_s = self._clock()
        return {key for key, until_s in self._overloaded.items() if until_s > now_s}

    def changes_at_s(self, keys: Iterable[Key]) -> float | None:
        """When one of the servers may have room without anybody saying so; None if not by itself."""
        now_s = self._clock()
        times = []
        for key in keys:
            times.append(self._overloaded.get(key, 0.0))
            account = self._ledger.accounts.get(key, NOTHING)
            if account.others_streams:
                times.append(account.reported_at_s + self._rules.trusted_s)
        return min((at_s for at_s in times if at_s > now_s), default=None)
