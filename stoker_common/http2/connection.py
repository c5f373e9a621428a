"""One client's connection: its frames, its streams, its end. asyncio calls it; calls are somebody else's."""

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from stoker_common.http2 import fields, request
from stoker_common.http2.blocks import Block, HeaderBlocks, unpadded
from stoker_common.http2.bounds import Bounds
from stoker_common.http2.bucket import Bucket
from stoker_common.http2.faults import ConnectionFault, StreamFault, protocol_error, too_much
from stoker_common.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FIRST_FRAME_BYTES,
    FIRST_WINDOW_BYTES,
    GOAWAY,
    HEADERS,
    LARGEST_STREAM_ID,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Setting,
    goaway,
    head,
    ping,
    rst_stream,
    settings,
    window_update,
)
from stoker_common.http2.inbox import Inbox
from stoker_common.http2.keepalive import Keepalive
from stoker_common.http2.limits import Limits
from stoker_common.http2.messages import MessageReader, Unreadable
from stoker_common.http2.outgoing import Outgoing
from stoker_common.http2.peer import PeerSettings, peer_name
from stoker_common.http2.reader import Frame, FrameReader
from stoker_common.http2.request import Request, Unfit
from stoker_common.http2.sender import Sender
from stoker_common.http2.stream import Served, Stream
from stoker_common.refusal import Code

log = logging.getLogger(__name__)

_ALIVE = b"alive?\0\0"
_HEARD = b"goaway?\0"
# SETTINGS may touch every stream's window; of so many streams each costs as much as another frame does.
_SETTINGS_WEIGHT = 100.0
_STREAMS_A_FRAME = 4


# A call came. What is done for it; None where it was answered at once.
Begin = Callable[["Connection", Stream, Request], Served | None]


class Connection(asyncio.Protocol):
    """Belongs to one event loop. `made` is told when it can be used, which is later than it is constructed; `lost` when
    it is over and nothing runs for it any more.
    """

    def __init__(
        self,
        begin: Begin,
        limits: Limits,
        bounds: Bounds,
        loop: asyncio.AbstractEventLoop,
        made: Callable[["Connection"], None],
        lost: Callable[["Connection"], None],
    ) -> None:
        self._begin = begin
        self._limits = limits
        self._bounds = bounds
        self._loop = loop
        self._made = made
        self._lost = lost
        self._reader = FrameReader(FIRST_FRAME_BYTES)
        self._blocks = HeaderBlocks(limits)
        self._peer_settings = PeerSettings()
        self._control = Bucket(limits.control_burst, limits.control_per_s, loop.time)
        self._resets = Bucket(limits.resets_burst, limits.resets_per_s, loop.time)
        # Those that are not over, or for which something still runs.
        self.streams: dict[int, Stream] = {}
        self._last_id = 0
        # Above it no stream is served any more.
        self._served_to = LARGEST_STREAM_ID
        self._owed = 0
        self._requests_held = bounds.unread.share(limits.unread_bytes)
        self._metadata_held = bounds.metadata.share(limits.all_metadata_bytes)
        self._greeted = False
        self._leaving = False
        self._closed = False
        self._disconnected = False
        # Who called, as gRPC writes it.
        self.peer = ""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        self.peer = peer_name(transport.get_extra_info("peername"))
        self._sender = Sender(
            self._transport,
            self._loop.call_soon,
            self._limits,
            self._sent_all,
            self._unread,
            self._bounds.unsent.share(self._limits.unsent_bytes),
            lambda why: self._bounds.refuse("unsent", self.peer, why),
        )
        self._keepalive = Keepalive(self._loop, self._limits, lambda: self._sender.control(ping(_ALIVE)), self._silent)
        self._timer = self._loop.call_later(self._limits.handshake_s, self._not_greeted)
        limits = self._limits
        self._sender.control(
            settings(
                {
                    Setting.MAX_CONCURRENT_STREAMS: limits.streams,
                    Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                    Setting.MAX_HEADER_LIST_SIZE: limits.metadata_bytes,
                }
            )
        )
        self._sender.control(window_update(0, limits.connection_window_bytes - FIRST_WINDOW_BYTES))
        self._made(self)

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

    def eof_received(self) -> bool:
        """See asyncio.Protocol. Who sends no more is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._closed = True
        self._sender.stop()
        self._keepalive.stop()
        self._timer.cancel()
        self._forsake()
        self._sender.gone()
        self._disconnected = True
        self._end_if_idle()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._sender.pause()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._sender.resume()

    # What the server asks.

    def leave(self) -> None:
        """Take no new streams, and close when those there are have ended."""
        if self._leaving or self._closed:
            return
        self._leaving = True
        # Streams that are on their way are served: only what comes after the answer to the PING is refused.
        self._sender.control(goaway(LARGEST_STREAM_ID, ErrorCode.NO_ERROR) + ping(_HEARD))
        self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.goaway_s, self._left)

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, why: str = "") -> None:
        """Close now. What runs is cancelled, what was said already is still sent."""
        if self._closed:
            return
        self._closed = True
        self._sender.control(goaway(self._last_id, code, why))
        self._hang_up()
        self._forsake()

    def abort(self) -> None:
        """Close now, whatever waits to be sent."""
        self._closed = True
        self._sender.stop()
        self._transport.abort()

    def settled(self, stream: Stream) -> None:
        """What was done for the stream has ended."""
        if stream.over and stream.id in self.streams:
            self._forget(stream)

    def take(self, stream: Stream) -> bytes | None:
        """The stream's next message, for its handler; None if none is there."""
        inbox = stream.inbox
        before = inbox.unread_bytes
        message = inbox.take()
        self._requests_held.add(inbox.unread_bytes - before)
        self._credit(stream)
        return message

    # Frames.

    def _take(self, frame: Frame) -> None:
        kind, flags, stream_id, payload = frame
        if self._blocks.stream_id and kind != CONTINUATION:
            raise protocol_error("a header block was broken off")
        if not self._greeted:
            if kind != SETTINGS or flags & ACK:
                raise protocol_error("a client begins with SETTINGS")
            self._greeted = True
            self._keepalive.begin()
            if not self._leaving:
                self._timer.cancel()
        if kind == DATA:
            self._data(flags, stream_id, payload)
        elif kind == HEADERS:
            self._begins_block(stream_id)
            self._headers(stream_id, self._blocks.begin(flags, stream_id, payload))
        elif kind == CONTINUATION:
            self._headers(stream_id, self._blocks.add(flags, stream_id, payload))
        elif kind == WINDOW_UPDATE:
            self._widen(stream_id, payload)
        elif kind == RST_STREAM:
            self._reset_by_client(stream_id, payload)
        elif kind == PING:
            self._ping(flags, stream_id, payload)
        elif kind == SETTINGS:
            self._settings(flags, stream_id, payload)
        elif kind == PUSH_PROMISE:
            raise protocol_error("a client may not push")
        elif kind == GOAWAY:
            # It opens no more streams; those there are go on.
            self._spend(1.0)
            if stream_id or len(payload) < 8:
                raise protocol_error("a GOAWAY that is none")
        else:
            # Unknown types are passed over, and priorities, which nobody uses any more; for nothing is neither.
            self._spend(1.0)
            if kind == PRIORITY and not stream_id:
                raise protocol_error("a PRIORITY of no stream")
            if kind == PRIORITY and len(payload) != 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a PRIORITY frame has five bytes")

    def _begins_block(self, stream_id: int) -> None:
        if not stream_id % 2:
            raise protocol_error(f"a client's streams have odd numbers, not {stream_id}")

    def _idle(self, stream_id: int) -> bool:
        """Whether it was never opened. Those with even numbers are ours, and we open none."""
        return not stream_id % 2 or stream_id > self._last_id

    def _headers(self, stream_id: int, block: Block | None) -> None:
        if block is None:
            return
        ends = bool(self._blocks.flags & END_STREAM)
        if stream_id <= self._last_id:
            self._trailers(stream_id, ends)
            return
        self._last_id = stream_id
        if stream_id > self._served_to or len(self.streams) >= self._limits.streams:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "there are too many, or the server leaves")
        asked = block.request
        if asked is None:
            asked = block.request = request.read(stream_id, block.fields)
        if isinstance(asked, Unfit):
            block_out = fields.http_status(asked.http_status)
            self._sender.control(head(len(block_out), HEADERS, END_HEADERS | END_STREAM, stream_id) + block_out)
            if not ends:
                self._sender.control(rst_stream(stream_id, ErrorCode.NO_ERROR))
            return
        stream = self.streams[stream_id] = Stream(
            stream_id,
            Outgoing(stream_id, self._peer_settings.window, self._limits.backlog_bytes),
            Inbox(
                MessageReader(self._limits.request_bytes, asked.encoding),
                self._limits.stream_window_bytes,
                asked.content_bytes,
            ),
            self._sender,
            self._reset,
            self._ending,
        )
        stream.inbox.ended = ends
        stream.metadata_bytes = asked.size_bytes
        self._metadata_held.add(asked.size_bytes)
        if asked.size_bytes > self._limits.metadata_bytes:
            text = f"the metadata has {asked.size_bytes} bytes, and {self._limits.metadata_bytes} are taken"
            stream.finish(fields.status(Code.RESOURCE_EXHAUSTED.value, text))
            return
        if not self._metadata_held.fits():
            stream.finish(self._refusal("metadata", self._metadata_held.why("the metadata of calls")))
            return
        if not stream.inbox.as_long_as_said(0, ends=ends):
            raise _length_fault(stream_id)
        stream.served = self._begin(self, stream, asked)
        if ends and stream.served is not None:
            stream.served.came()

    def _trailers(self, stream_id: int, ends: bool) -> None:
        """A second header block. gRPC's clients send none."""
        self._spend(1.0)
        stream = self.streams.get(stream_id)
        if stream is None:
            # Trailers of a stream that is over, which harms none; or a number that was passed over, and a client that
            # would wait for its answer.
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS on a stream that is over, or out of turn")
        if stream.over:
            return
        if stream.inbox.ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after the stream's end")
        if not ends:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a second header block is the stream's end")
        if not stream.inbox.as_long_as_said(0, ends=True):
            raise _length_fault(stream_id)
        self._half_close(stream)

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
        if not data and not flags & END_STREAM:
            self._spend(1.0)
        stream = self.streams.get(stream_id)
        if stream is None or stream.over:
            return  # sent before it heard of the stream's end
        inbox = stream.inbox
        if inbox.ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA after the stream's end")
        if size > inbox.window:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        if not inbox.as_long_as_said(len(data), ends=bool(flags & END_STREAM)):
            raise _length_fault(stream_id)
        if stream.finished:
            # Answered already; what comes meanwhile is of no use.
            if flags & END_STREAM:
                inbox.end()
            return
        before, refused = inbox.unread_bytes, None
        try:
            inbox.feed(data, size)
        except Unreadable as error:
            refused = error
        # Before the stream is cut, which takes off all that it has.
        self._requests_held.add(inbox.unread_bytes - before)
        if refused is not None:
            stream.cut(fields.status(refused.code.value, refused.why))
            return
        if inbox.unread_bytes > before and not self._requests_held.fits():
            stream.cut(self._refusal("unread", self._requests_held.why("requests")))
            return
        if flags & END_STREAM:
            self._half_close(stream)
        else:
            self._credit(stream)
            if inbox.messages and stream.served is not None:
                stream.served.came()

    def _half_close(self, stream: Stream) -> None:
        stream.inbox.end()
        if stream.inbox.broken_off and not stream.finished:
            stream.cut(fields.status(Code.INTERNAL.value, "the request ends within a message"))
        elif stream.served is not None:
            stream.served.came()

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

    def _reset_by_client(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a RST_STREAM has four bytes")
        if self._idle(stream_id):
            raise protocol_error(f"RST_STREAM on stream {stream_id}, which was not opened")
        stream = self.streams.get(stream_id)
        if stream is None or stream.over:
            self._spend(1.0)
            return
        self._count_reset(stream)
        self._over(stream)

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise protocol_error("a PING has no stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a PING has eight bytes")
        self._spend(1.0)
        if not flags & ACK:
            self._sender.control(ping(payload, ACK))
        elif payload == _HEARD and self._leaving:
            self._left()

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._spend(1.0 if flags & ACK else max(_SETTINGS_WEIGHT, len(self.streams) / _STREAMS_A_FRAME))
        if stream_id:
            raise protocol_error("SETTINGS have no stream")
        if flags & ACK and payload:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an answer to SETTINGS says nothing")
        if flags & ACK:
            return
        wider = self._peer_settings.take(payload)
        self._sender.frame_bytes(self._peer_settings.frame_bytes)
        if wider:
            for stream in self.streams.values():
                if not stream.over and not self._sender.stream_widened(stream.out, wider):
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is too large")
        self._sender.control(head(0, SETTINGS, ACK, 0))

    # Budgets.

    def _spend(self, weight: float) -> None:
        """A frame came that carries nothing."""
        if not self._control.take(weight):
            self._control.earn(4.0 * self._sender.data_frames())
            if not self._control.take(weight):
                raise too_much("too many frames that carry nothing")

    def _count_reset(self, stream: Stream | None) -> None:
        # CVE-2023-44487, and CVE-2025-8671 where we are made to reset.
        if (stream is None or not stream.answered) and not self._resets.take():
            raise too_much("too many streams were given up before they were answered")

    def _refusal(self, kind: str, why: str) -> bytes:
        """The status of a call that finds no room."""
        self._bounds.refuse(kind, self.peer, why)
        return fields.status(Code.RESOURCE_EXHAUSTED.value, f"{why}; send less at once, or later")

    def _credit(self, stream: Stream) -> None:
        if not stream.over and (size := stream.inbox.credit()):
            self._sender.control(window_update(stream.id, size))

    # Ends.

    def _fault(self, fault: StreamFault) -> None:
        """One stream ends by a mistake of its client's."""
        log.info("a stream was refused", extra={"peer": self.peer, "why": fault.why})
        try:
            stream = self.streams.get(fault.stream_id)
            self._count_reset(stream)
            if stream is None:
                self._sender.control(rst_stream(fault.stream_id, fault.code))
            else:
                self._reset(stream, fault.code)
        except ConnectionFault as worse:
            self._fail(worse)

    def _fail(self, fault: ConnectionFault) -> None:
        log.warning("a connection is closed", extra={"peer": self.peer, "why": fault.why, "code": fault.code.name})
        self.close(fault.code, fault.why)

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        if not stream.over:
            self._sender.control(rst_stream(stream.id, code))
            self._over(stream)

    def _sent_all(self, stream_id: int) -> None:
        """The stream's last frame is on its way."""
        stream = self.streams.get(stream_id)
        if stream is None or stream.over:
            return
        if not stream.inbox.ended:
            # It need not send the rest.
            self._sender.control(rst_stream(stream_id, ErrorCode.NO_ERROR))
        self._over(stream)

    def _over(self, stream: Stream) -> None:
        """Nothing goes out or comes in on it any more."""
        stream.over = True
        if stream.lingering is not None:
            # A timer that is cancelled holds nothing, one that runs all that was asked and said.
            stream.lingering.cancel()
        self._sender.drop(stream.out)
        self._requests_held.add(-stream.inbox.unread_bytes)
        stream.inbox.unread_bytes = 0
        stream.inbox.messages.clear()
        served = stream.served
        if served is not None:
            served.over()
            if served.running:
                return  # counted until its handler has ended
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        """It is over, and nothing runs for it."""
        # They know each other: neither is to wait for the garbage collector.
        stream.served = None
        del self.streams[stream.id]
        self._metadata_held.add(-stream.metadata_bytes)
        self._end_if_idle()

    def _ending(self, stream: Stream) -> None:
        """All was said, and the client has yet to take it."""
        waits = stream.out.backlog_bytes

        def look() -> None:
            nonlocal waits
            if stream.over or self._closed:
                return
            if stream.out.backlog_bytes == waits:
                self._reset(stream, ErrorCode.CANCEL)
                return
            waits = stream.out.backlog_bytes
            stream.lingering = self._loop.call_later(self._limits.linger_s, look)

        stream.lingering = self._loop.call_later(self._limits.linger_s, look)

    def _forsake(self) -> None:
        for stream in list(self.streams.values()):
            if not stream.over:
                self._over(stream)

    def _left(self) -> None:
        """The client knows that the server leaves."""
        self._timer.cancel()
        if self._served_to == LARGEST_STREAM_ID and not self._closed:
            self._served_to = self._last_id
            self._sender.control(goaway(self._last_id, ErrorCode.NO_ERROR))
            self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self.streams:
            return
        if self._disconnected:
            self._lost(self)
        elif self._served_to != LARGEST_STREAM_ID and not self._closed:
            self._closed = True
            self._hang_up()

    def _hang_up(self) -> None:
        """What was said is still sent, to a client that takes it within its time."""
        self._sender.finish()
        self._transport.close()
        self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.linger_s, self._transport.abort)

    def _silent(self) -> None:
        if not self._closed:
            log.info("a client is gone", extra={"peer": self.peer, "why": "it answers no PING"})
            self.abort()

    def _not_greeted(self) -> None:
        if not self._closed:
            log.info("a connection is closed", extra={"peer": self.peer, "why": "it never began to speak HTTP/2"})
            self.abort()

    def _unread(self, size: int) -> None:
        if not self._closed:
            log.warning("a connection is closed", extra={"peer": self.peer, "why": f"it leaves {size} bytes unread"})
            self.abort()


def _length_fault(stream_id: int) -> StreamFault:
    return StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "its DATA have not the length that content-length says")
