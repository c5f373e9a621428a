"""A connection's frames, as both ends take them: cut out of what came, checked, given to their streams.

Whose streams they are, and what begins or ends one, is for the end that inherits it.
"""

import asyncio
import logging
from abc import abstractmethod
from typing import Generic, TypeVar

from stoker_common.http2.blocks import Block, HeaderBlocks, unpadded
from stoker_common.http2.bounds import Bounds
from stoker_common.http2.faults import ConnectionFault, StreamFault, protocol_error
from stoker_common.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_STREAM,
    HEADERS,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    rst_stream,
    window_update,
)
from stoker_common.http2.housekeeping import Housekeeping
from stoker_common.http2.limits import Limits
from stoker_common.http2.messages import Unreadable
from stoker_common.http2.reader import Frame, FrameReader
from stoker_common.http2.stream import Stream
from stoker_common.refusal import Code

log = logging.getLogger(__name__)

AnyStream = TypeVar("AnyStream", bound=Stream)


class Connection(Housekeeping, Generic[AnyStream]):
    """State is changed synchronously, as frames come. Mistakes end a stream or the connection, as RFC 9113 says."""

    def __init__(
        self, limits: Limits, bounds: Bounds, loop: asyncio.AbstractEventLoop, reader: FrameReader, blocks: HeaderBlocks
    ) -> None:
        super().__init__(limits, bounds, loop)
        self._reader = reader
        self._blocks = blocks
        # Those that are not over, or for which something still runs.
        self.streams: dict[int, AnyStream] = {}
        self._owed = 0
        self._unread_held = bounds.unread.share(limits.unread_bytes)
        self._greeted = False

    # What either end adds.

    @abstractmethod
    def _headers(self, stream_id: int, block: Block, *, ends: bool) -> None:
        """A whole header block came."""

    @abstractmethod
    def _idle(self, stream_id: int) -> bool:
        """Whether it was never opened."""

    @abstractmethod
    def _may_open(self, stream_id: int) -> None:
        """HEADERS begin. Raises ConnectionFault where the other end may not have this number."""

    @abstractmethod
    def _was_reset(self, stream: AnyStream, code: int) -> None:
        """The other end has given up a stream."""

    @abstractmethod
    def _count_reset(self, stream: AnyStream | None) -> None:
        """A stream is given up because of what the other end did. Raises ConnectionFault if that is too often."""

    @abstractmethod
    def _forget(self, stream: AnyStream) -> None:
        """A stream is over, and nothing runs for it."""

    # What asyncio calls.

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._keepalive.heard = True
        try:
            for frame in self._reader.feed(data):
                if self._closed:
                    return
                try:
                    self._take(frame)
                except StreamFault as fault:
                    self._fault(fault)
        except ConnectionFault as fault:
            self._fail(fault)

    # What calls ask.

    def take(self, stream: AnyStream) -> bytes | None:
        """The stream's next message, for whoever reads it; None if none is there."""
        inbox = stream.inbox
        if stream.over:
            # What is left of it is not counted any more.
            return inbox.take()
        before = inbox.unread_bytes
        message = inbox.take()
        self._unread_held.add(inbox.unread_bytes - before)
        self._credit(stream)
        return message

    # Frames.

    def _take(self, frame: Frame) -> None:
        kind, flags, stream_id, payload = frame
        if self._blocks.stream_id and kind != CONTINUATION:
            raise protocol_error("a header block was broken off")
        if not self._greeted:
            if kind != SETTINGS or flags & ACK:
                raise protocol_error("a connection begins with SETTINGS")
            self._greeted = True
            self._keepalive.begin()
        if kind == DATA:
            self._data(flags, stream_id, payload)
        elif kind == HEADERS:
            self._may_open(stream_id)
            self._block(stream_id, self._blocks.begin(flags, stream_id, payload))
        elif kind == CONTINUATION:
            self._block(stream_id, self._blocks.add(flags, stream_id, payload))
        elif kind == WINDOW_UPDATE:
            self._widen(stream_id, payload)
        elif kind == RST_STREAM:
            self._reset_came(stream_id, payload)
        elif kind == PUSH_PROMISE:
            raise protocol_error("nobody may push here")
        else:
            self._keep(frame)

    def _block(self, stream_id: int, block: Block | None) -> None:
        if block is not None:
            self._headers(stream_id, block, ends=bool(self._blocks.flags & END_STREAM))

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        if self._idle(stream_id):
            raise protocol_error(f"DATA on stream {stream_id}, which was not opened")
        # What came is given back whether it is read or not (`Limits.unread_bytes` bounds it), so that a stream that
        # nobody reads holds up no other, and the connection's window can never be used up.
        self._owed += size
        if self._owed >= self._limits.connection_window_bytes // 2:
            self._sender.control(window_update(0, self._owed))
            self._owed = 0
        data = unpadded(flags, payload)
        ends = bool(flags & END_STREAM)
        if not data and not ends:
            self._spend(1.0)
        stream = self.streams.get(stream_id)
        if stream is None or stream.over:
            return  # sent before it heard of the stream's end
        inbox = stream.inbox
        if inbox.ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA after the stream's end")
        if size > inbox.window:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        stream.expect(len(data), ends=ends)
        if not stream.listens:
            # Answered already; what comes meanwhile is of no use.
            if ends:
                inbox.end()
            return
        before, refused = inbox.unread_bytes, None
        try:
            inbox.feed(data, size)
        except Unreadable as error:
            refused = error
        # Before the stream is ended, which takes off all that it has.
        self._unread_held.add(inbox.unread_bytes - before)
        if refused is not None:
            stream.refuse(refused.code, refused.why)
        elif inbox.unread_bytes > before and not self._unread_held.fits():
            stream.refuse(Code.RESOURCE_EXHAUSTED, self._refused("unread", self._unread_held.why("messages")))
        elif ends:
            stream.ended()
        else:
            if inbox.messages:
                stream.came()
            self._credit(stream)

    def _widen(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a WINDOW_UPDATE has four bytes")
        self._spend(1.0)
        size = int.from_bytes(payload) & 0x7FFFFFFF
        if not stream_id:
            if not size:
                raise protocol_error("a WINDOW_UPDATE by nothing")
            if not self._sender.widened(size):
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is too large")
            return
        if self._idle(stream_id):
            raise protocol_error(f"a WINDOW_UPDATE on stream {stream_id}, which was not opened")
        stream = self.streams.get(stream_id)
        if stream is None or stream.over:
            return
        if not size:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE by nothing")
        if not self._sender.stream_widened(stream.out, size):
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "the stream's window is too large")

    def _reset_came(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a RST_STREAM has four bytes")
        if self._idle(stream_id):
            raise protocol_error(f"RST_STREAM on stream {stream_id}, which was not opened")
        stream = self.streams.get(stream_id)
        if stream is None or stream.over:
            self._spend(1.0)
        else:
            self._was_reset(stream, int.from_bytes(payload))

    def _refused(self, kind: str, why: str) -> str:
        """What a call is told that finds no room."""
        self._bounds.refuse(kind, self.peer, why)
        return f"{why}; send less at once, or later"

    def _credit(self, stream: AnyStream) -> None:
        if not stream.over and (size := stream.inbox.credit()):
            self._sender.control(window_update(stream.id, size))

    @property
    def _streams_open(self) -> int:
        return len(self.streams)

    def _widen_all(self, size: int) -> None:
        for stream in self.streams.values():
            if not stream.over and not self._sender.stream_widened(stream.out, size):
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is too large")

    # Ends of streams.

    def _fault(self, fault: StreamFault) -> None:
        """One stream ends by a mistake of the other end's."""
        log.info("a stream was refused", extra={"peer": self.peer, "why": fault.why})
        try:
            stream = self.streams.get(fault.stream_id)
            self._count_reset(stream)
            if stream is None:
                self._sender.control(rst_stream(fault.stream_id, fault.code))
            else:
                self._blame(stream, fault)
        except ConnectionFault as worse:
            self._fail(worse)

    def _blame(self, stream: AnyStream, fault: StreamFault) -> None:
        self._reset(stream, fault.code)

    def _reset(self, stream: AnyStream, code: ErrorCode) -> None:
        if not stream.over:
            self._sender.control(rst_stream(stream.id, code))
            self._over(stream)

    def _over(self, stream: AnyStream) -> None:
        """Nothing goes out or comes in on it any more."""
        stream.over = True
        self._sender.drop(stream.out)
        self._unread_held.add(-stream.inbox.unread_bytes)
        stream.inbox.unread_bytes = 0
        if stream.leave():
            self._forget(stream)

    def _forsake(self) -> None:
        for stream in list(self.streams.values()):
            if not stream.over:
                self._over(stream)
