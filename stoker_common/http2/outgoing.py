"""One stream's side of what goes out: its window, and what waits for it."""

import asyncio
from collections import deque


class Outgoing:
    """Filled by a call, emptied by the connection's sender as far as the peer's windows let it."""

    __slots__ = ("_chunks", "_limit_bytes", "_offset", "_waiters", "backlog_bytes", "ending", "stream_id", "window")

    def __init__(self, stream_id: int, window: int, limit_bytes: int) -> None:
        self.stream_id = stream_id
        # What the peer takes of this stream. Below zero after it has made its windows smaller.
        self.window = window
        self.backlog_bytes = 0
        # The frames that end the stream, once its backlog is out.
        self.ending: bytes | None = None
        self._limit_bytes = limit_bytes
        self._chunks: deque[bytes] = deque()
        self._offset = 0
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def full(self) -> bool:
        """Whether so much waits that whoever fills it should, too."""
        return self.backlog_bytes > self._limit_bytes

    def add(self, *chunks: bytes) -> None:
        """What waits until there is room."""
        self._chunks.extend(chunks)
        self.backlog_bytes += sum(map(len, chunks))

    def take(self, most_bytes: int) -> bytes:
        """The first so many bytes that wait, or all."""
        chunks, taken, left = self._chunks, list[bytes](), most_bytes
        while chunks and left > 0:
            first = chunks[0]
            end = self._offset + left
            if end >= len(first):
                taken.append(first[self._offset :] if self._offset else first)
                left -= len(first) - self._offset
                self._offset = 0
                chunks.popleft()
            else:
                taken.append(first[self._offset : end])
                self._offset = end
                left = 0
        data = taken[0] if len(taken) == 1 else b"".join(taken)
        self.backlog_bytes -= len(data)
        if self._waiters and self.backlog_bytes <= self._limit_bytes // 2:
            self._wake()
        return data

    def drop(self) -> None:
        """Nobody waits for it any more."""
        self._chunks.clear()
        self.backlog_bytes = self._offset = 0
        self.ending = None
        self._wake()

    async def room(self) -> None:
        """Wait until it is less than half full, or dropped."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
