"""Where a request's parts go: put there at once, from within the engine's step, and nobody waits for a reader."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from stoker_common.parts import joined
from stoker_common.sink import Sink


class Out(Protocol):
    """One request's. Parts are serialised `GenerateStreamResponse`s."""

    def put(self, part: bytes, tokens: int) -> None:
        """The next part, with so many tokens in it. Never waits. Raises what ends the request."""

    def put_plain(self, part: bytes, tokens: int) -> None:
        """The same for a part of nothing but output. Runs once a token."""

    async def written(self) -> None:
        """Wait until what was put has gone out, as far as that is to be waited for here. Raises as `put` does."""


class Written:
    """Implements `Out` for a call, made by `writing`. What waits is sent joined: gRPC's flow control is the reader's,
    and what an engine makes meanwhile waits here, up to the request's last token. Where the call is a `Sink` with room,
    and nothing waits, output goes out from within the engine's step: no task is woken for a token."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], sink: Sink | None) -> None:
        self._send = send
        self._sink = sink
        self._parts: list[bytes] = []
        self._more = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()

    def put(self, part: bytes, tokens: int) -> None:
        """See Out."""
        self._parts.append(part)
        if len(self._parts) == 1:
            self._sent.clear()
            self._more.set()

    def put_plain(self, part: bytes, tokens: int) -> None:
        """See Out."""
        if self._sink is None or not self._sent.is_set() or not self._sink.put(part):
            self.put(part, tokens)

    async def written(self) -> None:
        """See Out."""
        await self._sent.wait()

    async def write(self) -> None:
        """Until it is cancelled. Raises what `send` raises."""
        while True:
            await self._more.wait()
            self._more.clear()
            parts, self._parts = self._parts, []
            await self._send(joined(parts))
            if not self._parts:
                self._sent.set()


@asynccontextmanager
async def writing(send: Callable[[bytes], Awaitable[None]], sink: Sink | None = None) -> AsyncIterator[Written]:
    """An `Out` whose parts `send` gets, one call after another, while the block runs, or `sink` at once: the two are
    ends of one call. Where sending fails the block is cancelled, and what failed is raised."""
    out = Written(send, sink)
    try:
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(out.write())
            yield out
            sending.cancel()
    except BaseExceptionGroup as group:
        # Of the two, what failed first; callers and gRPC know it by its type.
        raise group.exceptions[0] from None


class Kept:
    """Implements `Out` for an answer that goes out whole."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def put(self, part: bytes, tokens: int) -> None:
        """See Out."""
        self._parts.append(part)

    put_plain = put

    async def written(self) -> None:
        """See Out."""

    def whole(self) -> bytes:
        """All of it as one part, serialised."""
        return joined(self._parts) if self._parts else b""
