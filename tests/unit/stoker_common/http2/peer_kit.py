"""A channel without a network, and servers for it that answer what a test says, by the h2 package or frame by frame."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, PingReceived, RequestReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes

from stoker_common.http2.channel import Http2Channel
from stoker_common.http2.client_connection import ClientConnection
from stoker_common.http2.frames import message_prefix
from stoker_common.http2.limits import Limits, client_limits
from stoker_common.http2.messages import MessageReader
from tests.unit.stoker_common.http2.kit import Transport, settle, told


class Peer:
    """The server's end of one connection. `frames` sends bytes as they are; all else is well-formed, by h2."""

    def __init__(
        self, connection: ClientConnection, *, greets: bool = True, settings: dict[Any, int] | None = None
    ) -> None:
        self.connection = connection
        self.transport = Transport(connection)
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.asked: dict[int, dict[str, str]] = {}
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.events: list[Event] = []
        self.heard = bytearray()
        connection.connection_made(self.transport)
        if greets:
            self.h2.initiate_connection()
            self.h2.update_settings(settings or {})
            self.flush()

    def frames(self, data: bytes) -> None:
        """Bytes arrive at the client."""
        if not self.transport.closed:
            self.connection.data_received(data)

    def flush(self) -> None:
        """What h2 has to say."""
        self.frames(self.h2.data_to_send())

    async def hear(self) -> None:
        """What the client has said by now, and the answers that HTTP/2 asks for."""
        await settle()
        while self.transport.written:
            data = bytes(self.transport.written)
            self.transport.written.clear()
            self.heard += data
            for event in self.h2.receive_data(data):
                self._event(event)
            self.flush()
            await settle()

    def answer(self, stream_id: int, *messages: bytes, status: int = 0, message: str = "") -> None:
        """A whole answer."""
        self.begin(stream_id)
        for each in messages:
            self.say(stream_id, each)
        self.end(stream_id, status, message)

    def begin(self, stream_id: int, *more: tuple[str, str]) -> None:
        """An answer's headers."""
        self.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc"), *more])
        self.flush()

    def say(self, stream_id: int, message: bytes) -> None:
        """A message of it."""
        self.h2.send_data(stream_id, message_prefix(len(message)) + message)
        self.flush()

    def end(self, stream_id: int, status: int = 0, message: str = "") -> None:
        """Its trailers."""
        self.trailers(stream_id, ("grpc-status", str(status)), *([("grpc-message", message)] if message else []))

    def trailers(self, stream_id: int, *fields: tuple[str, str]) -> None:
        """The answer's last header block."""
        self.h2.send_headers(stream_id, list(fields), end_stream=True)
        self.flush()

    def messages(self, stream_id: int) -> list[bytes]:
        """What was asked on a stream."""
        return list(MessageReader(1 << 30, "identity").feed(self.data.get(stream_id, b"")))

    def _event(self, event: Event) -> None:
        self.events.append(event)
        match event:
            case RequestReceived():
                self.asked[event.stream_id] = told(event.headers)
            case DataReceived():
                self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
                if event.flow_controlled_length and event.stream_id not in self.resets:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case StreamEnded():
                self.ended.add(event.stream_id)
            case StreamReset():
                self.resets[event.stream_id] = int(event.error_code)


class Network:
    """Where channels connect to. `refuses` is what connecting fails with, `silent` whether a server never speaks."""

    def __init__(self, settings: dict[Any, int] | None = None) -> None:
        self.peers: list[Peer] = []
        self.tried: list[tuple[str, int]] = []
        self.refuses: Callable[[tuple[str, int]], bool] = lambda address: False
        self.silent = False
        self.settings = settings or {}

    async def connect(self, speaks: Callable[[], asyncio.Protocol], address: tuple[str, int]) -> object:
        """See `Connect`."""
        self.tried.append(address)
        if self.refuses(address):
            raise ConnectionRefusedError(111, "refused")
        made = speaks()
        assert isinstance(made, ClientConnection)
        self.peers.append(Peer(made, greets=not self.silent, settings=self.settings))
        return None

    def channel(self, limits: Limits | None = None, address: str = "127.0.0.1:5") -> Http2Channel:
        """A channel that connects here."""
        return Http2Channel(
            address, limits or client_limits(ping_when_idle=False), rng=random.Random(0), connect=self.connect
        )

    async def peer(self) -> Peer:
        """The newest server, once it has heard what was said to it."""
        await settle()
        peer = self.peers[-1]
        await peer.hear()
        return peer


CONCURRENT = SettingCodes.MAX_CONCURRENT_STREAMS
TABLE = SettingCodes.HEADER_TABLE_SIZE
WINDOW = SettingCodes.INITIAL_WINDOW_SIZE


def unary(channel: Http2Channel, method: str = "Twice", **how: Any) -> Any:
    """A call of one message each way."""
    return channel.unary_unary(f"/test.Service/{method}")(how.pop("request", b"ab"), **how)


def streamed(channel: Http2Channel, **how: Any) -> Any:
    """A call that is answered with many."""
    return channel.unary_stream("/test.Service/Count")(b"ab", **how)


def both(channel: Http2Channel, **how: Any) -> Any:
    """A call with messages both ways."""
    return channel.stream_stream("/test.Service/Echo")(**how)


async def failed(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status that it is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def pings(peer: Peer) -> int:
    """How often the client has asked whether its server is there."""
    return sum(isinstance(event, PingReceived) for event in peer.events)
