"""One client's connection at the server: the calls that it opens, what they may take, and how the server leaves."""

import asyncio
from collections.abc import Callable

from stoker_common.http2 import fields, request
from stoker_common.http2.blocks import Block, HeaderBlocks
from stoker_common.http2.bounds import Bounds
from stoker_common.http2.bucket import Bucket
from stoker_common.http2.connection import Connection
from stoker_common.http2.faults import StreamFault, protocol_error, too_much
from stoker_common.http2.frames import (
    END_STREAM,
    FIRST_FRAME_BYTES,
    LARGEST_STREAM_ID,
    ErrorCode,
    Setting,
    goaway,
    header_frames,
    ping,
    rst_stream,
)
from stoker_common.http2.inbox import Inbox
from stoker_common.http2.limits import Limits
from stoker_common.http2.messages import MessageReader
from stoker_common.http2.outgoing import Outgoing
from stoker_common.http2.reader import FrameReader
from stoker_common.http2.request import Request, Unfit
from stoker_common.http2.server_stream import Served, ServerStream
from stoker_common.refusal import Code

_HEARD = b"goaway?\0"
_READ = b"read?\0\0\0"

# A call came. What is done for it; None where it was answered at once.
Begin = Callable[["ServerConnection", ServerStream, Request], Served | None]
Told = Callable[["ServerConnection"], None]


class ServerConnection(Connection[ServerStream]):
    """`made` is told when it can be used, `lost` when it is over and nothing runs for it any more."""

    def __init__(
        self, begin: Begin, limits: Limits, bounds: Bounds, loop: asyncio.AbstractEventLoop, made: Told, lost: Told
    ) -> None:
        super().__init__(limits, bounds, loop, FrameReader(FIRST_FRAME_BYTES), HeaderBlocks(limits))
        self._begin = begin
        self._made = made
        self._lost = lost
        self._resets = Bucket(limits.resets_burst, limits.resets_per_s, loop.time)
        self._last_id = 0
        # Above it no stream is served any more.
        self._served_to = LARGEST_STREAM_ID
        self._metadata_held = bounds.metadata.share(limits.all_metadata_bytes)
        self._leaving = False
        # All was said, and the client has yet to read it.
        self._parting = False

    # What the server asks.

    def leave(self) -> None:
        """Take no new streams, and close when those there are have ended."""
        if self._leaving or self._closed:
            return
        self._leaving = True
        # Streams that are on their way are served: only what comes after the answer to the PING is refused.
        self._sender.control(goaway(LARGEST_STREAM_ID, ErrorCode.NO_ERROR) + ping(_HEARD))
        self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.goaway_s, self._unheard)

    def settled(self, stream: ServerStream) -> None:
        """What was done for the stream has ended."""
        if stream.over and stream.id in self.streams:
            self._forget(stream)

    # What the connection tells.

    def _connected(self) -> None:
        self._greet(
            {
                Setting.MAX_CONCURRENT_STREAMS: self._limits.streams,
                Setting.INITIAL_WINDOW_SIZE: self._limits.stream_window_bytes,
                Setting.MAX_HEADER_LIST_SIZE: self._limits.metadata_bytes,
            }
        )
        self._made(self)

    def _settled(self) -> None:
        if not self._leaving:
            self._timer.cancel()

    def _worth_asking(self) -> bool:
        # Also of who has no streams: a descriptor and what it holds are let go of.
        return True

    @property
    def _heard_to(self) -> int:
        return self._last_id

    def _may_open(self, stream_id: int) -> None:
        if not stream_id % 2:
            raise protocol_error(f"a client's streams have odd numbers, not {stream_id}")

    def _idle(self, stream_id: int) -> bool:
        # Those with even numbers are ours, and we open none.
        return not stream_id % 2 or stream_id > self._last_id

    def _headers(self, stream_id: int, block: Block, *, ends: bool) -> None:
        if stream_id <= self._last_id:
            self._trailers(stream_id, block, ends)
            return
        self._last_id = stream_id
        if stream_id > self._served_to or len(self.streams) >= self._limits.streams:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "there are too many, or the server leaves")
        asked = block.request
        if asked is None:
            asked = block.request = request.read(stream_id, block.fields)
        if isinstance(asked, Unfit):
            self._sender.control(header_frames(fields.http_status(asked.http_status), END_STREAM, stream_id))
            if not ends:
                self._sender.control(rst_stream(stream_id, ErrorCode.NO_ERROR))
            return
        self._open(stream_id, asked, ends)

    def _open(self, stream_id: int, asked: Request, ends: bool) -> None:
        stream = self.streams[stream_id] = ServerStream(
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
        self._bounds.streams += 1
        stream.inbox.ended = ends
        stream.metadata_bytes = asked.size_bytes
        self._metadata_held.add(asked.size_bytes)
        if asked.size_bytes > self._limits.metadata_bytes:
            text = f"the metadata has {asked.size_bytes} bytes, and {self._limits.metadata_bytes} are taken"
            stream.finish(fields.status(Code.RESOURCE_EXHAUSTED.value, text))
            return
        if not self._metadata_held.fits():
            text = self._refused("metadata", self._metadata_held.why("the metadata of calls"))
            stream.finish(fields.status(Code.RESOURCE_EXHAUSTED.value, text))
            return
        stream.expect(0, ends=ends)
        stream.served = self._begin(self, stream, asked)
        if ends and stream.served is not None:
            stream.served.came()

    def _trailers(self, stream_id: int, block: Block, ends: bool) -> None:
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
        for name, value in block.fields:
            request.entries(stream_id, name, value)  # nobody reads them; malformed ones are an error all the same
        if not ends:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a second header block is the stream's end")
        stream.expect(0, ends=True)
        stream.ended()

    def _was_reset(self, stream: ServerStream, code: int) -> None:
        self._count_reset(stream)
        self._over(stream)

    def _going(self, last_id: int, code: int, why: bytes) -> None:
        """The client opens no more streams; those there are go on."""

    def _answered(self, payload: bytes) -> None:
        if payload == _HEARD and self._leaving:
            self._left()
        elif payload == _READ and self._parting:
            self._parted()

    def _count_reset(self, stream: ServerStream | None) -> None:
        # CVE-2023-44487, and CVE-2025-8671 where we are made to reset.
        if (stream is None or not stream.answered) and not self._resets.take():
            raise too_much("too many streams were given up before they were answered")

    # Ends.

    def _sent_all(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None or stream.over:
            return
        if not stream.inbox.ended:
            # It need not send the rest.
            self._sender.control(rst_stream(stream_id, ErrorCode.NO_ERROR))
        self._over(stream)

    def _forget(self, stream: ServerStream) -> None:
        # They know each other: neither is to wait for the garbage collector.
        stream.served = None
        del self.streams[stream.id]
        self._bounds.streams -= 1
        self._metadata_held.add(-stream.metadata_bytes)
        self._end_if_idle()

    def _ending(self, stream: ServerStream) -> None:
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

    def _left(self) -> None:
        """The client knows that the server leaves."""
        self._timer.cancel()
        if self._served_to == LARGEST_STREAM_ID and not self._closed:
            self._served_to = self._last_id
            self._sender.control(goaway(self._last_id, ErrorCode.NO_ERROR))
            self._end_if_idle()

    def _unheard(self) -> None:
        """Nothing came back: the client does not answer, or not in time."""
        self._left()
        if self._parting:
            self._parted()

    def _end_if_idle(self) -> None:
        if self.streams:
            return
        if self._disconnected:
            self._lost(self)
        elif self._served_to != LARGEST_STREAM_ID and not self._closed and not self._parting:
            # Not yet: a proxy that finds the connection's end behind the last frames may pass over what it has not read
            # (haproxy 2.6 does, trailers and all). The answer to a PING says that it has.
            self._parting = True
            self._sender.control(ping(_READ))
            self._timer = self._loop.call_later(self._limits.goaway_s, self._parted)

    def _parted(self) -> None:
        if not self._closed:
            self._closed = True
            self._hang_up()
