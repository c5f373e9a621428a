"""One call at the server: what its handler reads and writes, how it runs, how it ends."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Executor
from contextlib import aclosing
from inspect import isasyncgen
from typing import Any, Never

import grpc
import grpc.aio

from stoker_common.failure import where
from stoker_common.http2 import fields
from stoker_common.http2.context import Context
from stoker_common.http2.messages import Packed, Unreadable
from stoker_common.http2.pacer import Pacer
from stoker_common.http2.request import Request
from stoker_common.http2.server_connection import ServerConnection
from stoker_common.http2.server_stream import ServerStream
from stoker_common.refusal import Code

log = logging.getLogger(__name__)

# What is put meanwhile is text of a few milliseconds.
_HELD_BYTES = 64 << 10
_CODES = {int(code.value[0]): code for code in grpc.StatusCode}
_NUMBERS = {code: int(code.value[0]) for code in grpc.StatusCode}
# Raised as grpc.aio raises it.
_OVER = "the call is over: its client has gone, or its status was sent"


class Call(Context):
    """A `Served`, and the context that its handler is given. Belongs to one event loop."""

    def __init__(
        self,
        stream: ServerStream,
        request: Request,
        handler: "grpc.RpcMethodHandler[Any, Any]",
        connection: ServerConnection,
        loop: asyncio.AbstractEventLoop,
        pacer: Pacer,
        unpacking: Executor,
        most_bytes: int,
    ) -> None:
        super().__init__(request, connection.peer, loop)
        self._stream = stream
        self._handler = handler
        self._serialise = handler.response_serializer
        self._connection = connection
        self._pacer = pacer
        self._unpacking = unpacking
        self._most_bytes = most_bytes
        # When something was put last, and what was put since.
        self._put_s = float("-inf")
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._task: asyncio.Task[None] | None = None
        # Whether the call's status is its own, not one that it was cut off with.
        self._said = False
        self._timer: asyncio.TimerHandle | None = None
        if self._deadline_s is not None:
            self._timer = loop.call_at(self._deadline_s, self._expired)

    # What the connection tells.

    @property
    def running(self) -> bool:
        """Whether its handler has begun and not ended."""
        return self._task is not None and not self._task.done()

    def came(self) -> None:
        """See `Served`. A handler that takes one request begins when it is there, all others at once."""
        inbox = self._stream.inbox
        if self._task is not None or self._handler.request_streaming or self._stream.finished:
            return
        if len(inbox.messages) > 1 or (inbox.ended and not inbox.messages):
            self._end(grpc.StatusCode.UNIMPLEMENTED, f"the method takes one request, not {len(inbox.messages)}")
        elif inbox.ended:
            self.begin()

    def begin(self) -> None:
        """Run the handler."""
        self._task = self._loop.create_task(self._run())
        # Not in the coroutine's `finally`: a task that is cancelled before it began has none.
        self._task.add_done_callback(self._ended)

    def over(self) -> None:
        """See `Served`."""
        if self._timer is not None:
            self._timer.cancel()
        # Whoever still reads finds the end.
        self._stream.inbox.end()
        if not self._said:
            self._cancelled = True
            if self._task is not None:
                self._task.cancel()

    def _expired(self) -> None:
        if self._stream.over:
            return
        self._cancelled = not self._stream.finished
        self._stream.cut(_status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ()))
        if self._task is not None:
            self._task.cancel()

    def _ended(self, _: "asyncio.Task[None]") -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception as error:
                log.error("a done callback failed", extra={"method": self._request.path, "where": where(error)})
        self._connection.settled(self._stream)

    # How it runs.

    async def _run(self) -> None:
        handler = self._handler
        try:
            if handler.request_streaming:
                argument: Any = self._requests()
            else:
                argument = await self._taken()
            if handler.response_streaming:
                method: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
                answer = method(argument, self)
                if isasyncgen(answer):
                    async with aclosing(answer) as parts:
                        async for part in parts:
                            await self.write(part)
                else:
                    await answer
            else:
                method = handler.stream_unary if handler.request_streaming else handler.unary_unary
                response = await method(argument, self)
                if self._code is grpc.StatusCode.OK and not self._stream.finished:
                    self._send(response)
            self._end(self._code, self._details)
        except grpc.aio.AbortError:
            pass  # it has said so
        except asyncio.CancelledError:
            self._end(grpc.StatusCode.CANCELLED, "the server cancelled the call")
        except Exception as error:
            # Its message may quote what the client sent.
            log.error("a handler failed", extra={"method": self._request.path, "where": where(error)})
            self._end(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: the server's log says where")

    async def _taken(self) -> Any:
        message = self._connection.take(self._stream)
        if message is None:
            return grpc.aio.EOF
        if isinstance(message, Packed):
            try:
                message = await self._loop.run_in_executor(self._unpacking, message.unpacked)
            except Unreadable as error:
                self._end(_CODES[error.code.value], error.why)
                raise grpc.aio.AbortError(error.why) from error
        read = self._handler.request_deserializer
        return message if read is None else read(message)

    async def _requests(self) -> AsyncIterator[Any]:
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request

    def _send(self, message: Any) -> None:
        stream = self._stream
        if stream.finished or stream.over:
            raise grpc.aio.InternalError(_OVER)
        data = message if self._serialise is None else self._serialise(message)
        if self._held:
            self._let_go()
        if len(data) > self._most_bytes:
            text = f"the answer's message has {len(data)} bytes, and {self._most_bytes} are sent"
            self._end(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            raise grpc.aio.AbortError(text)
        stream.send(data)

    def _let_go(self) -> None:
        """Send what was put and held, as one message."""
        held, self._held = self._held, []
        stream = self._stream
        if held and not stream.finished and not stream.over:
            self._put_s = self._loop.time()
            self._held_bytes = 0
            stream.send(held[0] if len(held) == 1 else b"".join(held))

    def _failed(self, error: Exception) -> None:
        """What was held could not be sent."""
        log.error("a part cannot be sent", extra={"method": self._request.path, "where": where(error)})
        self._stream.cut(_status(grpc.StatusCode.INTERNAL, "a part of the answer was lost", ()))
        if self._task is not None:
            self._task.cancel()

    def _end(self, code: grpc.StatusCode, details: str) -> None:
        if self._held:
            self._let_go()
        self._code, self._details = code, details
        self._said = True
        self._stream.finish(_status(code, details, self._trailing))

    # What the handler sees.

    async def read(self) -> Any:
        """See grpc.aio.ServicerContext."""
        inbox = self._stream.inbox
        while not inbox.messages and not inbox.ended:
            await inbox.wait()
        return await self._taken()

    async def write(self, message: Any) -> None:
        """See grpc.aio.ServicerContext. Waits while much of this stream waits for its client. Runs once a token."""
        self._send(message)
        stream = self._stream
        if stream.out.backlog_bytes and stream.full:
            await stream.out.room()

    def put(self, message: bytes) -> bool:
        """Send a serialised message now, or soon and joined to those put after it: joined, they have to say the same.
        Runs once a token.

        False, and nothing is sent, if the client is behind or the call is over. `write` says more, and waits.
        """
        stream = self._stream
        if stream.finished or stream.over or (stream.out.backlog_bytes and stream.full):
            return False
        if not self._held:
            now_s = self._loop.time()
            if now_s - self._put_s >= self._pacer.every_s:
                self._put_s = now_s
                stream.send(message)
                return True
            self._pacer.hold(self._let_go, self._failed)
            self._held_bytes = 0
        elif self._held_bytes > _HELD_BYTES:
            return False
        self._held.append(message)
        self._held_bytes += len(message)
        return True

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """See grpc.aio.ServicerContext."""
        if self._stream.answered:
            raise grpc.aio.UsageError("initial metadata go before all else, once")
        if self._stream.over:
            raise grpc.aio.InternalError(_OVER)
        self._stream.begin(fields.encoded(initial_metadata))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> Never:
        """See grpc.aio.ServicerContext."""
        if code is grpc.StatusCode.OK:
            raise grpc.aio.UsageError("a call is aborted with an error, not with OK")
        # As grpc.aio does it: what was set before is sent where nothing is said now.
        self._trailing = tuple(trailing_metadata) or self._trailing
        self._end(code, details or self._details)
        raise grpc.aio.AbortError("the call was aborted")

    async def abort_with_status(self, status: grpc.Status) -> Never:
        """See grpc.aio.ServicerContext."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def done(self) -> bool:
        """See grpc.aio.ServicerContext."""
        return self._stream.finished or self._stream.over


def _status(code: grpc.StatusCode, details: str, trailing: Iterable[tuple[str, str | bytes]]) -> bytes:
    if code is grpc.StatusCode.OK and not details and not trailing:
        return fields.STATUS_OK
    try:
        return fields.status(_NUMBERS[code], details) + fields.encoded(trailing)
    except ValueError as error:
        log.error("trailing metadata that cannot be sent", extra={"why": str(error)})
        return fields.status(Code.INTERNAL.value, "the server has trailing metadata that cannot be sent")
