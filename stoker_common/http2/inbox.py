"""What came on one stream: messages that wait to be read, and when its client may send more."""

import asyncio
from collections import deque

from stoker_common.http2.messages import MessageReader

# What a message costs beside its bytes: empty ones are no gift.
_MESSAGE_BYTES = 64


class Inbox:
    """Filled by the connection, emptied by the handler.

    The client is given its window back as it sends, as long as nothing whole waits to be read: what it sends then is
    the rest of one message, which is bounded.
    """

    __slots__ = (
        "_content_left",
        "_owed",
        "_reader",
        "_waiter",
        "_window_bytes",
        "ended",
        "messages",
        "unread_bytes",
        "window",
    )

    def __init__(self, reader: MessageReader, window_bytes: int, content_bytes: int | None = None) -> None:
        """`content_bytes`: what the client has said that all its DATA have."""
        self._reader = reader
        self._window_bytes = window_bytes
        self._content_left = content_bytes
        # What the client may send before it is told of more.
        self.window = window_bytes
        self._owed = 0
        self.messages: deque[bytes] = deque()
        # Of whole messages and of one that has not wholly come.
        self.unread_bytes = 0
        # The client sends no more.
        self.ended = False
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes, flow_bytes: int) -> None:
        """DATA came that took `flow_bytes` of the window. Raises Unreadable."""
        self.window -= flow_bytes
        self._owed += flow_bytes
        self.unread_bytes -= self._reader.held_bytes
        for message in self._reader.feed(data):
            self.messages.append(message)
            self.unread_bytes += len(message) + _MESSAGE_BYTES
        self.unread_bytes += self._reader.held_bytes
        self.wake()

    def as_long_as_said(self, size: int, *, ends: bool) -> bool:
        """DATA of so many bytes came: whether content-length is not exceeded, and at the end reached."""
        if self._content_left is None:
            return True
        self._content_left -= size
        return self._content_left == 0 if ends else self._content_left >= 0

    @property
    def broken_off(self) -> bool:
        """Whether a message has begun to come and not wholly come."""
        return self._reader.held_bytes > 0

    def end(self) -> None:
        """No more comes."""
        self.ended = True
        self.wake()

    def take(self) -> bytes | None:
        """The next message; None if none is there."""
        if not self.messages:
            return None
        message = self.messages.popleft()
        self.unread_bytes -= len(message) + _MESSAGE_BYTES
        return message

    def credit(self) -> int:
        """By how many bytes the client's window is to grow now; mostly none."""
        if self.messages or self.ended or self._owed < self._window_bytes // 2:
            return 0
        size, self._owed = self._owed, 0
        self.window += size
        return size

    async def wait(self) -> None:
        """Until something has come, or nothing more does. One may wait at a time."""
        if self._waiter is not None:
            raise RuntimeError("two reads at once of one call; read one message after the other")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Let whoever waits look."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
