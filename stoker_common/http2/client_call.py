"""One call at the client: how it begins, what it is told and asked, how it ends. What grpc.aio's calls are, by kind."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from stoker_common.failure import where
from stoker_common.http2 import answer, asking
from stoker_common.http2.answer import End
from stoker_common.http2.client_connection import ClientConnection
from stoker_common.http2.client_stream import ClientStream
from stoker_common.http2.dialer import Dialer
from stoker_common.http2.inbox import Inbox
from stoker_common.http2.limits import Limits
from stoker_common.http2.messages import MessageReader
from stoker_common.http2.request import Metadata
from stoker_common.refusal import Code

log = logging.getLogger(__name__)

_CODES: Final = {int(code.value[0]): code for code in grpc.StatusCode}
_CANCELLED: Final = End.of(Code.CANCELLED, "Locally cancelled by application!")
_EXPIRED: Final = End.of(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
# As grpc.aio says it.
FINISHED: Final = "RPC already finished."
HALF_CLOSED: Final = 'RPC is half closed after calling "done_writing".'


class ClientCall:
    """Belongs to one event loop. An `Asks` and a `Waits`: its stream and its channel tell it what happens."""

    def __init__(
        self,
        dialer: Dialer,
        limits: Limits,
        path: str,
        metadata: bytes,
        timeout_s: float | None,
        patient: bool,
        read: Callable[[bytes], Any] | None,
        first: bytes | None,
    ) -> None:
        """`metadata` is encoded. `first` is the one message of a call that has one; None: messages are written."""
        self._dialer = dialer
        self._limits = limits
        self._path = path
        self._metadata = metadata
        self._deserialise = read
        self._first = first
        self._closing = first is not None
        self.patient = patient
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(MessageReader(limits.response_bytes, "identity"), limits.stream_window_bytes)
        self._connection: ClientConnection | None = None
        self._stream: ClientStream | None = None
        self._initial: Metadata | None = None
        self._end: End | None = None
        self._locally = False
        self._waiters: list[asyncio.Future[None]] = []
        self._callbacks: list[Callable[[Any], None]] = []
        self._deadline_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        if timeout_s is not None:
            self._deadline_s = self._loop.time() + timeout_s
            if timeout_s <= 0:
                self.over(_EXPIRED)
                return
            self._timer = self._loop.call_at(self._deadline_s, self._expired)
        if first is not None and len(first) > limits.request_bytes:
            self.over(_too_large(len(first), limits.request_bytes))
            return
        dialer.begin(self)

    # What its channel and its stream tell.

    def begin(self, connection: ClientConnection) -> None:
        """See `Waits`."""
        metadata = self._metadata
        if self._deadline_s is not None:
            metadata = asking.timeout(self._deadline_s - self._loop.time()) + metadata
        self._connection = connection
        stream = self._stream = connection.open(self, self._inbox, self._path, metadata)
        first, self._first = self._first, None
        if first is not None:
            if not stream.send(first, last=True):
                connection.give_up(stream, End.of(Code.RESOURCE_EXHAUSTED, stream.too_slow()))
        elif self._closing:
            stream.close()
        self._wake()

    def answered(self, metadata: Metadata) -> None:
        """See `Asks`."""
        self._initial = metadata
        self._wake()

    def came(self) -> None:
        """See `Asks`. Whoever reads was woken already."""

    def over(self, end: End) -> None:
        """See `Asks` and `Waits`."""
        if self._end is not None:
            return
        self._end = end
        self._first = None
        if self._timer is not None:
            self._timer.cancel()
        self._dialer.ended(self)
        self._inbox.end()
        self._wake()
        for callback in self._callbacks:
            self._loop.call_soon(self._tell, callback)
        self._callbacks.clear()

    def _expired(self) -> None:
        self._stop(_EXPIRED)

    def _stop(self, end: End) -> None:
        """End it from here."""
        if self._stream is not None and self._connection is not None:
            self._connection.give_up(self._stream, end)
        self.over(end)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _news(self) -> None:
        """Wait until it has begun, is answered, or is over."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    async def _ended(self) -> End:
        while self._end is None:
            await self._news()
        return self._end

    def _tell(self, callback: Callable[[Any], None]) -> None:
        try:
            callback(self)
        except Exception as error:
            log.error("a done callback failed", extra={"method": self._path, "where": where(error)})

    # What its caller asks.

    def cancel(self) -> bool:
        """See grpc.aio.Call."""
        if self._end is not None:
            return False
        self._locally = True
        self._inbox.messages.clear()
        self._stop(_CANCELLED)
        return True

    def cancelled(self) -> bool:
        """See grpc.aio.Call."""
        return self._end is not None and self._end.status == Code.CANCELLED.value

    def done(self) -> bool:
        """See grpc.aio.Call."""
        return self._end is not None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """See grpc.aio.Call."""
        if self._end is None:
            self._callbacks.append(callback)
        else:
            self._loop.call_soon(self._tell, callback)

    def time_remaining(self) -> Any:
        """See grpc.aio.Call: seconds, None without a deadline."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - self._loop.time())

    async def wait_for_connection(self) -> None:
        """See grpc.aio.Call."""
        while self._end is None and self._stream is None:
            await self._news()
        self._raise_for_status()

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """See grpc.aio.Call."""
        while self._end is None and self._initial is None:
            await self._news()
        return _metadata(self._initial or ())

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """See grpc.aio.Call."""
        return _metadata((await self._ended()).trailing)

    async def code(self) -> grpc.StatusCode:
        """See grpc.aio.Call."""
        return _code(await self._ended())

    async def details(self) -> str:
        """See grpc.aio.Call."""
        return (await self._ended()).details

    async def _cancelling(self, waiting: Any) -> None:
        try:
            await waiting
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _raise_for_status(self) -> None:
        """Raise what it ended with, if it did, and not well."""
        if self._end is not None and self._end.status != answer.OK:
            if self._locally:
                raise asyncio.CancelledError
            raise self._error(self._end)

    def _error(self, end: End) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(
            _code(end), _metadata(self._initial or ()), _metadata(end.trailing), end.details, end.details
        )

    def _read(self, message: bytes) -> Any:
        if self._deserialise is None:
            return message
        try:
            return self._deserialise(message)
        except Exception as error:
            self.cancel()
            # Not its text, which may quote what came.
            text = f"the answer's message cannot be read: {type(error).__name__}"
            raise self._error(End.of(Code.INTERNAL, text)) from error


class UnaryCall(ClientCall, grpc.aio.UnaryUnaryCall[Any, Any]):
    """One message each way."""

    def __await__(self) -> Any:
        """See grpc.aio.UnaryUnaryCall."""
        while self._end is None:
            try:
                yield from self._news().__await__()
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
            self._stop(_too_large(len(message), self._limits.request_bytes))
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
            raise asyncio.InvalidStateError(FINISHED)
        if self._closing:
            raise asyncio.InvalidStateError(HALF_CLOSED)


def _too_large(size: int, most: int) -> End:
    return End.of(Code.RESOURCE_EXHAUSTED, f"the message has {size} bytes, and {most} are sent")


def _code(end: End) -> grpc.StatusCode:
    return _CODES.get(end.status, grpc.StatusCode.UNKNOWN)


def _metadata(pairs: Metadata) -> grpc.aio.Metadata:
    return grpc.aio.Metadata(*pairs)
