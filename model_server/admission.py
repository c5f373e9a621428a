"""Whether a request may come in now: the server is open, and the engine's queue has room."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from model_server.inflight import Entry, InFlight
from stoker_common.refusal import exhausted

_SHORTEST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0


class Admission:
    """Lets requests into `in_flight` while fewer than `max_waiting` sequences wait for the engine.

    What waits is counted here and not taken from the engine's figures: those are of its last step, and a burst arrives
    between two. `drain_s` tells how long what waits is expected to take.
    """

    def __init__(
        self, in_flight: InFlight, *, max_streams: Callable[[], int], max_waiting: int, drain_s: Callable[[], float]
    ) -> None:
        self.in_flight = in_flight
        self._max_streams = max_streams
        self._max_waiting = max_waiting
        self._drain_s = drain_s
        self._sequences = 0

    @asynccontextmanager
    async def request(self, remaining_s: float | None, *, sequences: int) -> AsyncIterator[Entry]:
        """One request of so many sequences, for as long as the block runs. Raises Refusal."""
        self.in_flight.check_open()
        waiting = self._sequences - self._max_streams()
        if waiting >= self._max_waiting:
            retry_s = min(max(self._drain_s(), _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
            raise exhausted(
                f"{waiting} sequences wait for this server's engine, and it lets {self._max_waiting} wait;"
                f" come back in {retry_s:.1f} s or ask a router",
                retry_after_s=retry_s,
                reason="SERVER_OVERLOADED",
            )
        self._sequences += sequences
        try:
            async with self.in_flight.request(remaining_s) as entry:
                yield entry
        finally:
            self._sequences -= sequences
