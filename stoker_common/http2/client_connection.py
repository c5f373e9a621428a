"""A client's connection to a server: the calls that it opens, how they are answered, and how it ends."""

import asyncio
from types import MappingProxyType
from typing import Final, Protocol

from stoker_common.http2 import answer, asking, fields
from stoker_common.http2.answer import Answer, End
from stoker_common.http2.blocks import Block, HeaderBlocks
from stoker_common.http2.bounds import Bounds
from stoker_common.http2.client_stream import Asks, ClientStream, Refused
from stoker_common.http2.connection import Connection
from stoker_common.http2.faults import ConnectionFault, StreamFault, protocol_error
from stoker_common.http2.frames import (
    FIRST_FRAME_BYTES,
    LARGEST_STREAM_ID,
    PREFACE,
    ErrorCode,
    Setting,
    header_frames,
)
from stoker_common.http2.inbox import Inbox
from stoker_common.http2.limits import Limits
from stoker_common.http2.outgoing import Outgoing
from stoker_common.http2.reader import FrameReader
from stoker_common.refusal import Code

# What our own server answers with, mostly.
_CONSTANT: Final = MappingProxyType(
    {
        fields.HEADERS: Block([(b":status", b"200"), (b"content-type", b"application/grpc")]),
        fields.STATUS_OK: Block([(b"grpc-status", b"0")]),
    }
)
_WHY_BYTES: Final = 200


class Owner(Protocol):
    """Who has a connection made, and is told of it."""

    def ready(self, connection: "ClientConnection") -> None:
        """The server has said what it takes: calls may begin, or more of them."""

    def leaving(self, connection: "ClientConnection") -> None:
        """No call can begin on it any more."""

    def lost(self, connection: "ClientConnection") -> None:
        """It is over."""


class ClientConnection(Connection[ClientStream]):
    """`authority` is what the server is called; `owner` is told what becomes of the connection."""

    def __init__(
        self, authority: str, owner: Owner, limits: Limits, bounds: Bounds, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            limits, bounds, loop, FrameReader(FIRST_FRAME_BYTES, greeted=True), HeaderBlocks(limits, _CONSTANT)
        )
        self._owner = owner
        self._request_blocks = asking.RequestBlocks(authority)
        self._next_id = 1
        self._full = False
        # Whether no call can begin any more.
        self.left = False
        self.why = "the connection was lost"

    # What calls ask.

    @property
    def room(self) -> bool:
        """Whether a call can begin now."""
        return (
            not self.left
            and not self._closed
            and not self._full
            and self._greeted
            and len(self.streams) < self._peer_settings.streams
        )

    def open(self, call: Asks, inbox: Inbox, path: str, metadata: bytes) -> ClientStream:
        """A call begins, where there is room. `metadata`: its own fields, encoded."""
        stream_id = self._next_id
        self._next_id += 2
        stream = self.streams[stream_id] = ClientStream(
            stream_id,
            Outgoing(stream_id, self._peer_settings.window, self._limits.backlog_bytes),
            inbox,
            self._sender,
            call,
        )
        self._sender.control(header_frames(self._request_blocks.block(path) + metadata, 0, stream_id))
        self._keepalive.begin()
        if self._next_id > LARGEST_STREAM_ID:
            self._go()
        return stream

    def give_up(self, stream: ClientStream, end: End) -> None:
        """The call ends now, whatever the server would still say."""
        stream.end = end
        self._reset(stream, ErrorCode.CANCEL)

    def leave(self) -> None:
        """Begin no more calls, and close when those there are have ended."""
        self._go()
        self._end_if_idle()

    # What the connection tells.

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._full = False
        super().resume_writing()
        self._owner.ready(self)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        # What a full socket holds up cannot be taken back: calls wait before they begin.
        self._full = True
        super().pause_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if exc is not None and not self._closed:
            self.why = f"the connection was lost: {exc}"
        super().connection_lost(exc)

    def _connected(self) -> None:
        self._sender.control(PREFACE)
        self._greet(
            {
                Setting.ENABLE_PUSH: 0,
                Setting.INITIAL_WINDOW_SIZE: self._limits.stream_window_bytes,
                Setting.MAX_HEADER_LIST_SIZE: self._limits.metadata_bytes,
            }
        )

    def _settled(self) -> None:
        self._timer.cancel()
        self._request_blocks.limit(self._peer_settings.table_bytes)
        self._owner.ready(self)

    def _worth_asking(self) -> bool:
        return self._limits.pings_idle or bool(self.streams)

    @property
    def _heard_to(self) -> int:
        return 0  # servers open none

    def _may_open(self, stream_id: int) -> None:
        if self._idle(stream_id):
            raise protocol_error(f"HEADERS on stream {stream_id}, which was not opened")

    def _idle(self, stream_id: int) -> bool:
        # Servers may not open any.
        return not stream_id % 2 or stream_id >= self._next_id

    def _headers(self, stream_id: int, block: Block, *, ends: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is None or stream.over:
            return
        told = block.answer
        if told is None:
            told = block.answer = answer.read(stream_id, block.fields)
        if told.size_bytes > self._limits.metadata_bytes:
            text = f"the answer's metadata has {told.size_bytes} bytes, and {self._limits.metadata_bytes} are taken"
            raise Refused(stream_id, Code.RESOURCE_EXHAUSTED, text)
        if ends:
            self._finish(stream, told)
        elif stream.answered:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a second header block is the answer's end")
        elif told.http_status is None:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "an answer without an HTTP status")
        elif told.http_status < 200:
            self._spend(1.0)  # the answer proper is to come
        elif not told.is_grpc:
            # What else comes is a page for people.
            self.give_up(stream, told.end if told.http_status != 200 else _no_grpc(told))
        else:
            stream.answered = True
            if stream.call is not None:
                stream.call.answered(told.metadata)

    def _finish(self, stream: ClientStream, told: Answer) -> None:
        if not stream.answered and told.http_status == 200 and told.status is None:
            stream.end = _no_grpc(told)
        elif stream.inbox.broken_off and told.status == answer.OK:
            stream.end = End.of(Code.INTERNAL, "the answer ended within a message")
        else:
            stream.end = told.end
        if stream.sent:
            self._over(stream)
        else:
            # The server need not wait for the rest.
            self._reset(stream, ErrorCode.NO_ERROR)

    def _was_reset(self, stream: ClientStream, code: int) -> None:
        stream.end = answer.of_reset(code)
        self._over(stream)

    def _going(self, last_id: int, code: int, why: bytes) -> None:
        text = why[:_WHY_BYTES].decode("utf-8", "replace")
        for stream in [each for each in self.streams.values() if each.id > last_id and not each.over]:
            stream.end = End.of(Code.UNAVAILABLE, f"the server takes no more calls, GOAWAY {code} {text}".rstrip())
            self._over(stream)
        if code:
            self.why = f"the server closed the connection, GOAWAY {code} {text}".rstrip()
        self._go()
        self._end_if_idle()

    def _answered(self, payload: bytes) -> None:
        """It is there."""

    def _count_reset(self, stream: ClientStream | None) -> None:
        self._spend(1.0)

    # Ends.

    def _go(self) -> None:
        if not self.left:
            self.left = True
            self._owner.leaving(self)

    def _sent_all(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.sent = True

    def _blame(self, stream: ClientStream, fault: StreamFault) -> None:
        code = fault.grpc_code if isinstance(fault, Refused) else Code.INTERNAL
        stream.end = End.of(code, fault.why)
        self._reset(stream, fault.code)

    def _fail(self, fault: ConnectionFault) -> None:
        self.why = f"the server broke a rule of HTTP/2, so the connection was closed: {fault.why}"
        super()._fail(fault)

    def _forsake(self) -> None:
        lost = End.of(Code.UNAVAILABLE, self.why)
        for stream in self.streams.values():
            stream.end = lost
        self._go()
        super()._forsake()

    def _forget(self, stream: ClientStream) -> None:
        del self.streams[stream.id]
        if self.left:
            self._end_if_idle()
        elif len(self.streams) + 1 == self._peer_settings.streams:
            self._owner.ready(self)

    def _end_if_idle(self) -> None:
        if self.streams:
            return
        if self._disconnected:
            self._owner.lost(self)
        elif self.left and not self._closed:
            self.close()


def _no_grpc(told: Answer) -> End:
    kind = told.content_type.decode("latin-1")
    return End.of(Code.UNKNOWN, f"the answer is none of gRPC's: its content-type is {kind!r}")
