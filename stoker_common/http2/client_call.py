"""One call at the client, whatever its kind: how it begins, what it is told and asked, how it ends."""

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
        # Those who wait for its beginning or its answer's, and those who wait for its end.
        self._waiters: list[asyncio.Future[None]] = []
        self._last_waiters: list[asyncio.Future[None]] = []
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
            self.over(too_large(len(first), limits.request_bytes))
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
        _settle(self._last_waiters)
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
        _settle(self._waiters)

    async def _news(self) -> None:
        """Wait until it has begun, is answered, or is over."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    async def _ended(self) -> End:
        while self._end is None:
            waiter = self._loop.create_future()
            self._last_waiters.append(waiter)
            await waiter
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


def _settle(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()


def too_large(size: int, most: int) -> End:
    """What a call ends with whose message is not sent."""
    return End.of(Code.RESOURCE_EXHAUSTED, f"the message has {size} bytes, and {most} are sent")


def _code(end: End) -> grpc.StatusCode:
    return _CODES.get(end.status, grpc.StatusCode.UNKNOWN)


def _metadata(pairs: Metadata) -> grpc.aio.Metadata:
    return grpc.aio.Metadata(*pairs)
