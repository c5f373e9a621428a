"""What a server holds for all of its connections together: how many there are, and the bytes of each kind."""

import logging

from stoker_common.clock import Clock
from stoker_common.http2.limits import Limits
from stoker_common.http2.pool import Pool

log = logging.getLogger(__name__)

# One line tells of all of its kind since the one before: whoever floods a server is not to flood its log.
LINE_EVERY_S = 10.0
# What is bounded, as logs and metrics name it.
KINDS = ("connections", "unread", "unsent", "metadata")


class Bounds:
    """One server's. Refusals and faults are counted by kind, and told of in the log, seldom."""

    def __init__(self, limits: Limits, clock: Clock, end: str = "server") -> None:
        """`end` is whose they are, for the log: a server's, or a channel's (`client`)."""
        self._end = end
        self._most_connections = limits.connections
        self._clock = clock
        self.unread = Pool(limits.server_unread_bytes)
        self.unsent = Pool(limits.server_unsent_bytes)
        self.metadata = Pool(limits.server_metadata_bytes)
        # The pools by kind.
        self.pools = {"unread": self.unread, "unsent": self.unsent, "metadata": self.metadata}
        # What is open now; streams also while their handlers run.
        self.connections = 0
        self.streams = 0
        # Since the server began: what limits refused, by kind, and connections that ended by what their client did, by
        # the code that it was told.
        self.refused: dict[str, int] = {}
        self.faults: dict[str, int] = {}
        self._told: dict[str, tuple[float, int]] = {}

    def admits(self, peer: str) -> bool:
        """Whether there may be one more connection. If not, it counts as refused."""
        if self.connections < self._most_connections:
            return True
        self.refuse("connections", peer, f"there are {self.connections} already, and no more are taken")
        return False

    def fault(self, code: str, peer: str, why: str) -> None:
        """Count a connection that ended by what its peer did. `code`: what it was told."""
        count = self.faults[code] = self.faults.get(code, 0) + 1
        if (since := self._since_told(code, count)) is not None:
            about = {"peer": peer, "why": why, "code": code, "closed": since, "closed_ever": count}
            log.warning("a connection is closed", extra=about)

    def refuse(self, kind: str, peer: str, why: str) -> None:
        """Count a refusal: of `connections`, `unread` requests, `unsent` answers or `metadata`."""
        count = self.refused[kind] = self.refused.get(kind, 0) + 1
        if (since := self._since_told(kind, count)) is not None:
            about = {"limit": kind, "peer": peer, "why": why, "refused": since, "refused_ever": count}
            log.warning("a limit of the HTTP/2 %s was reached", self._end, extra=about)

    def _since_told(self, what: str, count: int) -> int | None:
        """How many there were since the last line about it; None if that was a moment ago."""
        now_s = self._clock()
        told_s, told = self._told.get(what, (float("-inf"), 0))
        if now_s - told_s < LINE_EVERY_S:
            return None
        self._told[what] = now_s, count
        return count - told
