"""The one writer of a link's served end: says what there is to say, and when a heartbeat is due for want of anything.

Only what is sent counts as a word. A writer may be woken and find nothing to send (a stream was cancelled, what woke it
went out a moment ago): the other side has heard nothing then, and its patience runs on.
"""

import asyncio
from collections.abc import Awaitable, Callable

from stoker.v1 import worker_link_pb2
from stoker_common.clock import Clock
from stoker_common.link.outbox import Outbox

# Who attached calls its peer dead after 2 s without a word (DESIGN.md section 6): three of these may be lost.
HEARTBEAT_S = 0.5


class LinkWriter:
    """Sends for one link. `send` takes a serialised `AttachResponse`; two of its calls never overlap."""

    def __init__(self, outbox: Outbox, send: Callable[[bytes], Awaitable[None]], clock: Clock) -> None:
        self._outbox = outbox
        self._send = send
        self._clock = clock
        self._due_s = clock() + HEARTBEAT_S
        self._waited_out = False

    async def turn(self, *, at_once: bool = False) -> None:
        """Wait until there may be something to say, or a heartbeat is due. `at_once`: there is something already.

        Messages of their own go out by themselves; what streams got waits in the outbox.
        """
        left_s = max(0.0, self._due_s - self._clock())
        self._waited_out = not at_once and not await self._outbox.filled(left_s)
        for message in self._outbox.messages():
            await self.send(message)
        # All that the loop has ready belongs to this step: let it come in first.
        await asyncio.sleep(0)

    @property
    def due(self) -> bool:
        """Whether the other side has to hear something now."""
        return self._waited_out or self._clock() >= self._due_s

    @property
    def lag_s(self) -> float:
        """How late a heartbeat would be that is sent now."""
        return max(0.0, self._clock() - self._due_s)

    async def send(self, response: worker_link_pb2.AttachResponse) -> None:
        """Send one message."""
        await self._send(response.SerializeToString())
        self._waited_out = False
        self._due_s = self._clock() + HEARTBEAT_S
