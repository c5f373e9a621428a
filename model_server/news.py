"""What became of the streams that clients have here themselves, on its way to the router that sent them.

It waits a moment for what else there is to say: a message wakes the router, which costs that more than what it says
(docs/adr/0176). What somebody may wait for does not: a failure, and an end where the batch is full.
"""

from collections.abc import Callable

from model_server.parts import duration
from stoker.v1 import worker_link_pb2
from stoker_common.clock import Clock

# A router reads load reports every 0.25 s, and weighs its own streams by what it has heard of them: a fifth of that.
HOLD_S = 0.05


class News:
    """For one attached router process. `later` calls back after so many seconds; `wake` has the link's writer look."""

    def __init__(
        self,
        clock: Clock,
        later: Callable[[float, Callable[[], None]], object],
        wake: Callable[[], None],
        urgent: Callable[[], bool],
    ) -> None:
        """`urgent`: whether an end is waited for: by who comes now where the batch is full, by a server that leaves."""
        self._clock = clock
        self._later = later
        self._wake = wake
        self._urgent = urgent
        self._held: list[tuple[float, worker_link_pb2.DirectStream]] = []
        self._timed = False
        self._due = False

    @property
    def due(self) -> bool:
        """Whether there is some that waits no longer for company."""
        return self._due

    def add(self, news: worker_link_pb2.DirectStream) -> None:
        """Something happened just now, or `news.ago`."""
        self._held.append((self._clock(), news))
        if news.HasField("error") or (news.last and self._urgent()):
            self._now()
        elif not self._timed:
            self._timed = True
            self._later(HOLD_S, self._waited)

    def take(self, into: worker_link_pb2.Step) -> None:
        """All there is, with how long ago each was."""
        now_s = self._clock()
        for at_s, news in self._held:
            told = into.direct.add()
            told.CopyFrom(news)
            if now_s > at_s:
                told.ago.CopyFrom(duration(news.ago.ToNanoseconds() / 1e9 + now_s - at_s))
        self._held.clear()
        self._due = False

    def _waited(self) -> None:
        self._timed = False
        if self._held:
            self._now()

    def _now(self) -> None:
        self._due = True
        self._wake()
