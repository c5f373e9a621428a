"""A client's calls by their kinds, as grpc.aio's are: what is written and read of each."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc.aio

from stoker_common.http2 import answer
from stoker_common.http2.answer import End
from stoker_common.http2.client_call import ClientCall, too_large
from stoker_common.refusal import Code

# As grpc.aio says it.
_FINISHED: Final = "RPC already finished."
_HALF_CLOSED: Final = 'RPC is half closed after calling "done_writing".'


class UnaryCall(ClientCall, grpc.aio.UnaryUnaryCall[Any, Any]):
    """One message each way."""

    def __await__(self) -> Any:
        """See grpc.aio.UnaryUnaryCall."""
        while self._end is None:
            try:
                yield from self._ended().__await__()
            except asyncio.CancelledError:
                self.cancel()
                raise
        self._raise_for_status()
        messages = self._inbox.messages
        if len(messages) != 1:
            raise self._error(End.of(Code.INTERNAL, f"the answer has {len(messages)} messages, and is to have one"))
        return self._read(messages[0])


class StreamedCall(ClientCall):
    """A stream of messages comes back."""

    def __init__(self, *args: Any) -> None:
        self._hear: Callable[[bytes], None] | None = None
        self._broken: Exception | None = None
        super().__init__(*args)

    def hear(self, hear: Callable[[bytes], None]) -> None:
        """From now on hand each message to `hear` as soon as it came, serialised; readers get the end alone, and what
        `hear` raises. What came before comes first."""
        self._hear = hear
        self.came()

    def came(self) -> None:
        """See `Asks`. Runs once a message."""
        hear, messages = self._hear, self._inbox.messages
        if hear is None:
            return
        try:
            while messages:
                message = self._take()
                if message is not None:
                    hear(message)
        except Exception as error:  # the call's, and none of the connection's, which calls this
            self._broken = error
            self.cancel()

    async def read(self) -> Any:
        """See grpc.aio.UnaryStreamCall."""
        message = await self._next()
        return grpc.aio.EOF if message is None else self._read(message)

    def __aiter__(self) -> Any:
        """See grpc.aio.UnaryStreamCall."""
        return self

    async def __anext__(self) -> Any:
        message = await self._next()
        if message is None:
            raise StopAsyncIteration
        return self._read(message)

    async def _next(self) -> bytes | None:
        inbox = self._inbox
        while self._hear is not None or not inbox.messages:
            if self._broken is not None:
                raise self._broken
            if self._end is not None:
                self._raise_for_status()
                return None
            # Who hears is not woken for each message.
            await self._cancelling(inbox.wait() if self._hear is None else self._ended())
        return self._take()

    def _take(self) -> bytes | None:
        if self._connection is None or self._stream is None:
            return self._inbox.take()
        return self._connection.take(self._stream)


class UnaryStreamCall(StreamedCall, grpc.aio.UnaryStreamCall[Any, Any]):
    """One message goes, many come."""


class StreamStreamCall(StreamedCall, grpc.aio.StreamStreamCall[Any, Any]):
    """Messages both ways. They are written, not taken from an iterator."""

    def __init__(self, serialise: Callable[[Any], bytes] | None, *args: Any) -> None:
        self._serialise = serialise
        super().__init__(*args)

    async def write(self, request: Any) -> None:
        """See grpc.aio.StreamStreamCall. Waits while much of this call waits for its server."""
        self._check()
        message = request if self._serialise is None else self._serialise(request)
        if len(message) > self._limits.request_bytes:
            self._stop(too_large(len(message), self._limits.request_bytes))
            self._raise_for_status()
        while self._stream is None:
            await self._cancelling(self._news())
            self._raise_for_status()
        self._check()
        stream = self._stream
        if not stream.send(message) and self._connection is not None:
            self._connection.give_up(stream, End.of(Code.RESOURCE_EXHAUSTED, stream.too_slow()))
            self._raise_for_status()
        if stream.out.backlog_bytes and stream.full:
            await self._cancelling(stream.out.room())
            if self._end is not None and self._end.status != answer.OK:
                self._raise_for_status()

    def put(self, message: bytes) -> bool:
        """Send a serialised message now. False, and nothing is sent, where `write` would wait or fail."""
        stream = self._stream
        if stream is None or self._end is not None or self._closing or stream.full:
            return False
        return len(message) <= self._limits.request_bytes and stream.send(message)

    async def done_writing(self) -> None:
        """See grpc.aio.StreamStreamCall."""
        if self._end is None and not self._closing:
            self._closing = True
            if self._stream is not None:
                self._stream.close()

    def _check(self) -> None:
        if self._end is not None:
            raise asyncio.InvalidStateError(_FINISHED)
        if self._closing:
            raise asyncio.InvalidStateError(_HALF_CLOSED)
