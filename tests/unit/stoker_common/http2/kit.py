"""A server without a network: connections whose transport is in memory, and clients that speak by the h2 package."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes

from stoker_common import wire
from stoker_common.http2.frames import (
    FIRST_FRAME_BYTES,
    FIRST_WINDOW_BYTES,
    GOAWAY,
    MESSAGE_PREFIX_BYTES,
    ErrorCode,
    head,
    message_prefix,
)
from stoker_common.http2.limits import Limits
from stoker_common.http2.messages import MessageReader
from stoker_common.http2.reader import Frame, FrameReader
from stoker_common.http2.server import Http2Server
from stoker_common.http2.server_connection import ServerConnection
from tests.fakes.virtual_loop import VirtualLoop

# Turns of the loop in which whatever was woken has done what it can.
TURNS = 10


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test in virtual time: sleeping passes it. Nothing may fail in a callback, or in a task nobody awaits."""
    failures: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, failure: failures.append(failure))

        async def tested() -> None:
            await test()

        runner.run(tested())
    assert not failures


async def settle() -> None:
    """Let the loop do what it can at this moment."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


class Handlers:
    """Methods, and how many calls they have."""

    def __init__(self) -> None:
        self.running = 0
        self.began = 0
        self.read: list[bytes] = []
        self.go = asyncio.Event()
        # What `put` said.
        self.room: list[bool] = []

    def service(self) -> grpc.GenericRpcHandler:
        """For `add_generic_rpc_handlers`."""
        return wire.service(
            "test.Service",
            {
                "Twice": grpc.unary_unary_rpc_method_handler(self._twice),
                "Hold": grpc.unary_stream_rpc_method_handler(self._hold),
                "Send": grpc.unary_stream_rpc_method_handler(self._send),
                "Put": grpc.unary_stream_rpc_method_handler(self._put),
                "Collect": grpc.stream_stream_rpc_method_handler(self._collect),
                "Stay": grpc.stream_stream_rpc_method_handler(self._stay),
            },
        )

    async def _twice(self, request: bytes, _: Any) -> bytes:
        return request * 2

    async def _hold(self, _: bytes, context: Any) -> None:
        self.running += 1
        self.began += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1

    async def _send(self, request: bytes, context: Any) -> None:
        """As many messages as the request says, of a size that it says."""
        count, size = request.split()
        self.running += 1
        try:
            for _ in range(int(count)):
                await context.write(bytes(int(size)))
        finally:
            self.running -= 1

    async def _put(self, request: bytes, context: Any) -> None:
        """What the request says, word by word: a number is a pause in ms, `+` writes what follows, all else is put."""
        for word in request.split():
            if word.isdigit():
                await asyncio.sleep(int(word) / 1e3)
            elif word.startswith(b"+"):
                await context.write(word)
            else:
                self.room.append(context.put(word))

    async def _collect(self, _: object, context: Any) -> None:
        while isinstance(data := await context.read(), bytes):
            self.read.append(data)

    async def _stay(self, _: object, context: Any) -> None:
        """Reads nothing until told to."""
        await self.go.wait()
        while isinstance(data := await context.read(), bytes):
            self.read.append(data)


class Transport(asyncio.Transport):
    """Keeps what is written, and does not close before the loop's next turn."""

    def __init__(self, connection: asyncio.Protocol) -> None:
        super().__init__()
        self._connection = connection
        self.written = bytearray()
        self.writes = 0
        self.closed = False
        # Whether nobody takes what was written: closing then waits for ever, as a socket's does.
        self.stuck = False
        self.lost = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See asyncio.Transport."""
        return ("127.0.0.1", 5) if name == "peername" else default

    def write(self, data: Any) -> None:
        """See asyncio.Transport."""
        assert not self.closed, "written after the end"
        self.writes += 1
        self.written += data

    def get_write_buffer_size(self) -> int:
        """See asyncio.Transport."""
        return len(self.written)

    def close(self) -> None:
        """See asyncio.Transport."""
        self.closed = True
        if not self.stuck:
            self.abort()

    def abort(self) -> None:
        """See asyncio.Transport."""
        self.closed = True
        if not self.lost:
            self.lost = True
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)

    def is_closing(self) -> bool:
        """See asyncio.Transport."""
        return self.closed


class Client:
    """One connection. `frames` sends bytes as they are; all else is well-formed, by h2."""

    def __init__(self, server: Http2Server, *, greet: bool = True, window: int = FIRST_WINDOW_BYTES) -> None:
        made = server.protocol(asyncio.get_running_loop())
        assert isinstance(made, ServerConnection)
        self.connection = made
        self.transport = Transport(made)
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.messages: dict[int, bytes] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.resets: dict[int, int] = {}
        self.ended: set[int] = set()
        self.events: list[Event] = []
        self.goaways: list[tuple[int, ErrorCode, str]] = []
        self._reader = FrameReader(FIRST_FRAME_BYTES, greeted=True)
        made.connection_made(self.transport)
        if greet:
            self.h2.initiate_connection()
            self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
            self.frames(self.h2.data_to_send())

    def frames(self, data: bytes) -> None:
        """Bytes arrive at the server."""
        if not self.transport.closed:
            self.connection.data_received(data)

    def open(self, method: str, *messages: bytes, end: bool = True, metadata: tuple[tuple[str, str], ...] = ()) -> int:
        """A call; the number of its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, [*headers(method), *metadata], end_stream=end and not messages)
        for at, message in enumerate(messages):
            self.say(stream_id, message, end=end and at == len(messages) - 1)
        self.frames(self.h2.data_to_send())
        return stream_id

    def say(self, stream_id: int, message: bytes, *, end: bool = False) -> None:
        """A message on a stream."""
        self.data(stream_id, message_prefix(len(message)) + message, end=end)

    def data(self, stream_id: int, data: bytes, *, end: bool = False, padding: int | None = None) -> None:
        """DATA on a stream."""
        while len(data) > 16_000:
            self.h2.send_data(stream_id, data[:16_000])
            data = data[16_000:]
        self.h2.send_data(stream_id, data, end_stream=end, pad_length=padding)
        self.frames(self.h2.data_to_send())

    def cancel(self, stream_id: int) -> None:
        """Give a call up."""
        self.h2.reset_stream(stream_id, 8)
        self.frames(self.h2.data_to_send())

    async def hear(self, *, take: bool = True) -> None:
        """What the server has said by now, and the answers that HTTP/2 asks for. `take` lets it send as much again."""
        await settle()
        while self.transport.written:
            data = bytes(self.transport.written)
            self.transport.written.clear()
            for frame in self._reader.feed(data):
                self._frame(frame, take)
            self.frames(self.h2.data_to_send())
            await settle()

    def said(self, stream_id: int) -> list[bytes]:
        """The messages of an answer."""
        return list(MessageReader(1 << 30, "identity").feed(self.messages.get(stream_id, b"")))

    def message(self, stream_id: int) -> bytes:
        """The one message that an answer has."""
        return self.messages[stream_id][MESSAGE_PREFIX_BYTES:]

    def status(self, stream_id: int) -> int:
        """The status that a call ended with."""
        return int(self.trailers.get(stream_id, self.headers[stream_id])["grpc-status"])

    def _frame(self, frame: Frame, take: bool) -> None:
        kind, flags, stream_id, payload = frame
        if kind == GOAWAY:
            # After one, h2 hears no more.
            code = int.from_bytes(payload[4:8])
            self.goaways.append((int.from_bytes(payload[:4]), ErrorCode(code), payload[8:].decode()))
        elif (
            stream_id <= self.h2.highest_outbound_stream_id
        ):  # of streams that were opened by `frames` h2 knows nothing
            for event in self.h2.receive_data(head(len(payload), kind, flags, stream_id) + payload):
                self._event(event, take)

    def _event(self, event: Event, take: bool) -> None:
        self.events.append(event)
        match event:
            case ResponseReceived():
                self.headers[event.stream_id] = told(event.headers)
            case TrailersReceived():
                self.trailers[event.stream_id] = told(event.headers)
            case DataReceived():
                self.messages[event.stream_id] = self.messages.get(event.stream_id, b"") + event.data
                if take and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case StreamReset():
                self.resets[event.stream_id] = int(event.error_code)
            case StreamEnded():
                self.ended.add(event.stream_id)


def told(fields: Iterable[Any]) -> dict[str, str]:
    """A header list that came."""
    return {str(name): str(value) for name, value in fields}


def headers(method: str) -> list[tuple[str, str]]:
    """The header list of a call."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/test.Service/{method}"),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]


def served(handlers: Handlers, limits: Limits | None = None) -> Http2Server:
    """A server without ports."""
    server = Http2Server(limits)
    server.add_generic_rpc_handlers((handlers.service(),))
    return server
