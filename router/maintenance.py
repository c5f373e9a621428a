"""Empties the servers that an operator took out with `consul maint`: their streams go on elsewhere."""

import logging
from collections.abc import Callable
from functools import partial

from discovery.catalog import CatalogState
from router.errors import EndpointError, Fault
from router.fleet import Fleet
from router.ledger import Key
from router.running import Attempt, Running
from stoker_common.clock import Clock
from stoker_common.refusal import unavailable

log = logging.getLogger(__name__)

# So often, while a server is out: a stream that could not be moved a moment ago may be now.
_EVERY_S = 0.25


class Maintenance:
    """Moves streams off servers in maintenance, `grace_s` after it began. Streams that cannot be moved end there."""

    def __init__(
        self, fleet: Fleet, running: Running, movable: Callable[[Key, Attempt], bool], clock: Clock, grace_s: float
    ) -> None:
        self._fleet = fleet
        self._running = running
        self._movable = movable
        self._clock = clock
        self._grace_s = grace_s
        self._since_s: dict[Key, float] = {}

    async def run(self) -> None:
        """Look after servers until cancelled."""
        while True:
            self.look()
            await self._fleet.changed(within_s=_EVERY_S if self._since_s else None)

    def look(self) -> None:
        """Move what is due now."""
        out = {
            key
            for key, member in self._fleet.snapshot.members.items()
            if member.catalog_state is CatalogState.MAINTENANCE
        }
        now_s = self._clock()
        self._since_s = {key: self._since_s.get(key, now_s) for key in out}
        for key, since_s in self._since_s.items():
            if now_s - since_s >= self._grace_s and self._running.on(key):
                self._move(key)

    def _move(self, key: Key) -> None:
        moved = self._running.empty(key, partial(self._movable, key), partial(_moved, key))
        if moved:
            log.info("moving streams off a server in maintenance", extra={"server": key[0], "streams": moved})


def _moved(key: Key) -> EndpointError:
    return EndpointError(Fault.MOVED, unavailable(f"server {key[0]} is in maintenance", reason="SERVER_MAINTENANCE"))
