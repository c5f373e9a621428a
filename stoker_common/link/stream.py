"""One generation on a link: a buffer between the link, which must never wait, and a client, which may."""

import asyncio
from collections.abc import Callable

from stoker_common.link.state import Cause, LinkError
from stoker_common.parts import joined, only_deltas
from stoker_common.refusal import exhausted

# Takes a part of nothing but output at once, with the tokens in it; False if it has no room.
Relay = Callable[[bytes, int], bool]


class LinkStream:
    """Filled by the link's reader, emptied by the attempt. Belongs to one event loop.

    What waits is handed over as one piece: joining serialised parts merges them, so a client that is behind costs fewer
    messages, not more memory.
    """

    __slots__ = (
        "_bytes",
        "_chunks",
        "_error",
        "_last",
        "_limit_bytes",
        "_relay",
        "_tokens",
        "_waiter",
        "idle_looks",
        "tokens",
    )

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._tokens = 0
        self._last = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._relay: Relay | None = None
        # In the piece that was taken last, as its server counted them.
        self.tokens = 0
        # How often in a row its server said that the stream runs and gets nothing.
        self.idle_looks = 0

    def relay(self, relay: Relay) -> None:
        """From now on, output that finds its reader waiting goes to `relay` instead, and the reader sleeps on: it has
        taken all before it, so that nothing is overtaken."""
        self._relay = relay

    def pass_on(self, chunk: bytes, tokens: int) -> bool:
        """Output came and nothing else, with so many tokens. Runs once a token. As `put`."""
        waiter = self._waiter
        if self._relay is not None and waiter is not None and not waiter.done():
            try:
                if self._relay(chunk, tokens):
                    self.idle_looks = 0
                    return True
            except Exception as error:  # this stream's, and none of the link's, which calls this
                self.fail(error)
                return True
        return self._keep(chunk, tokens)

    def put(self, chunk: bytes, tokens: int = 0) -> bool:
        """A chunk of any kind came, with so many tokens in it.

        False if the client is too far behind: the stream has failed, and its server should know. A chunk that finds
        nothing waiting is taken whatever its size: a long prompt's logprobs come in one.
        """
        return self.pass_on(chunk, tokens) if only_deltas(chunk) else self._keep(chunk, tokens)

    def _keep(self, chunk: bytes, tokens: int) -> bool:
        self.idle_looks = 0
        self._bytes += len(chunk)
        if self._bytes > self._limit_bytes and self._chunks:
            message = f"the client has not read {self._bytes} bytes of its answer; read faster, or ask for less"
            self.fail(LinkError(Cause.SLOW_READER, exhausted(message, reason="CLIENT_TOO_SLOW")))
            return False
        self._chunks.append(chunk)
        self._tokens += tokens
        self._wake()
        return True

    def end(self) -> None:
        """The server has sent all."""
        self._last = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """The stream broke: its reader gets `error`. What came before is still handed over first."""
        if not self._last and self._error is None:
            self._error = error
            self._wake()

    def waiting(self) -> int | None:
        """Tokens that wait to be taken; None once no more come."""
        return None if self._last or self._error is not None else self._tokens

    async def take(self) -> bytes | None:
        """All that waits, joined; None when the stream has ended. Raises what it was failed with."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._last:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunks, self._chunks = self._chunks, []
        self._bytes = 0
        self.tokens, self._tokens = self._tokens, 0
        return joined(chunks)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
