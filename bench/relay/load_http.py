"""Load over HTTP: OpenAI's completions as server-sent events, a connection for each stream.

On bare asyncio protocols, which cost a fifth of what an HTTP client costs for an event.
"""

import asyncio
import json
from collections.abc import Callable

from bench.relay.load import Seen, Watcher
from bench.relay.load_grpc import SAMPLED
from bench.relay.script import MODEL, ONCE, STAMP_DIGITS

_EVENT = b'"text":'
_DONE = b"data: [DONE]"
_KEPT = len(_DONE) - 1


def _request(prompt: str, tokens: int, *, stream: bool) -> bytes:
    body = json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": tokens, "stream": stream}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class HttpError(Exception):
    """The system did not answer with 200, or hung up."""


class _Connection(asyncio.Protocol):
    """Hands on what comes, to whoever is told."""

    def __init__(self) -> None:
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self.on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if not self.over.done():
            self.over.set_exception(HttpError("the connection was closed"))

    def done(self) -> None:
        """The answer is complete."""
        if not self.over.done():
            self.over.set_result(None)

    def failed(self, data: bytes) -> None:
        """It is no answer."""
        if not self.over.done():
            self.over.set_exception(HttpError(data[:300].decode("latin-1")))


class HttpLoad:
    """A `Load`."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._host, self._port = host, int(port)
        self._kept: tuple[asyncio.Transport, _Connection] | None = None

    async def _connect(self) -> tuple[asyncio.Transport, _Connection]:
        return await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)

    async def stream(self, i: int, how: str, tokens: int, seen: Seen, began: Callable[[], None]) -> None:
        """See `Load`."""
        transport, connection = await self._connect()
        watcher = Watcher(seen) if i % SAMPLED == 0 else None
        tail, head, began_yet = b"", True, False

        def came(data: bytes) -> None:
            nonlocal tail, head, began_yet
            if head and not data.startswith(b"HTTP/1.1 200"):
                connection.failed(data)
                return
            seen.messages += 1
            window = tail + data
            events = window.count(_EVENT) - tail.count(_EVENT)
            seen.tokens += events
            if watcher is not None:
                _stamps(window, len(tail), watcher)
            head = False
            if events and not began_yet:
                began_yet = True
                began()
            tail = window[-_KEPT:]
            if _DONE in window:
                connection.done()

        connection.on_data = came
        transport.write(_request(f"{how} {i}", tokens, stream=True))
        try:
            await connection.over
        finally:
            transport.close()

    async def unary(self) -> None:
        """See `Load`. On one connection that is kept."""
        transport, connection = self._kept or await self._connect()
        self._kept = transport, connection
        connection.over = asyncio.get_running_loop().create_future()
        got = b""

        def came(data: bytes) -> None:
            nonlocal got
            got += data
            head, found, body = got.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                connection.failed(got)
            elif b"chunked" in head.lower():
                if got.endswith(b"0\r\n\r\n"):
                    connection.done()
            elif len(body) >= _length(head):
                connection.done()

        connection.on_data = came
        transport.write(_request(ONCE, 16, stream=False))
        await connection.over

    async def close(self) -> None:
        """See `Load`."""
        if self._kept is not None:
            self._kept[0].close()


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    raise HttpError("an answer without a length")


def _stamps(window: bytes, new_from: int, watcher: Watcher) -> None:
    """Tell the watcher of the events whose marker ends in what is new. One cut off inside its stamp is left out."""
    at = max(0, new_from - len(_EVENT) + 1)
    while (at := window.find(_EVENT, at)) >= 0:
        at += len(_EVENT)
        text = window[at : at + STAMP_DIGITS + 2].strip(b' "')
        if text[:STAMP_DIGITS].isdigit() and len(text) >= STAMP_DIGITS:  # chunks may be cut anywhere
            watcher.came(text)
