"""What goes out on one connection: gathered while the loop works through a turn, written at once.

A write is a system call, and costs more than all else that a token does. What a step of an engine has for many streams
of a connection is one.
"""

from collections.abc import Callable
from typing import Protocol

from stoker_common.http2.frames import (
    DATA,
    END_STREAM,
    FIRST_FRAME_BYTES,
    FIRST_WINDOW_BYTES,
    HEAD_BYTES,
    LARGEST_WINDOW_BYTES,
    MESSAGE_PREFIX_BYTES,
    head,
    message_head,
    message_prefix,
)
from stoker_common.http2.limits import Limits
from stoker_common.http2.outgoing import Outgoing
from stoker_common.http2.pool import Share


class Wire(Protocol):
    """Where bytes go: asyncio's transport, or a test's."""

    def write(self, data: bytes) -> None:
        """Send, or keep until it can be."""

    def get_write_buffer_size(self) -> int:
        """How many bytes are kept."""


class Sender:
    """Belongs to one event loop. `soon` runs a callback in the loop's next turn."""

    def __init__(
        self,
        wire: Wire,
        soon: Callable[[Callable[[], None]], object],
        limits: Limits,
        ended: Callable[[int], None],
        unread: Callable[[int], None],
        unsent: Share,
        refused: Callable[[str], None],
    ) -> None:
        """`ended` is told of each stream whose last frame was handed over, `unread` when a client lets so many bytes of
        answers wait that the connection should end, `refused` why a message of a stream's was. `unsent` counts what
        waits."""
        self._wire = wire
        self._soon = soon
        self._limits = limits
        self._ended = ended
        self._unread = unread
        self._unsent = unsent
        self._refused = refused
        # Of what is counted there, beside streams: what the socket holds up, and what was not handed over to it.
        self._stuck_bytes = 0
        self._window = FIRST_WINDOW_BYTES
        self._frame_bytes = FIRST_FRAME_BYTES
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._scheduled = False
        self._paused = False
        self._stopped = False
        # Streams that have something to send and a window, in the order of their turns.
        self._ready: dict[int, Outgoing] = {}
        # Streams whose end alone is left to send.
        self._ending: dict[int, Outgoing] = {}
        # DATA frames since somebody asked last.
        self._data_frames = 0

    @property
    def idle(self) -> bool:
        """Whether all was handed over."""
        return not self._out and not self._ready and not self._ending

    def control(self, frame: bytes) -> None:
        """A frame that no window holds back."""
        if self._stopped:
            return
        self._out.append(frame)
        self._out_bytes += len(frame)
        if self._paused:
            self._stick(len(frame))
            if self._out_bytes > self._limits.control_bytes:
                self._unread(self._out_bytes)
            elif not self._unsent.fits():
                self._no_room()
        elif not self._scheduled:
            self._scheduled = True
            self._soon(self._flush)

    def message(self, stream: Outgoing, message: bytes, flags: int = 0) -> bool:
        """A message of a stream's, `flags` on its frame. Runs once a token. False, and it is not sent, where too much
        waits already."""
        size = len(message) + MESSAGE_PREFIX_BYTES
        if (
            not stream.backlog_bytes
            and size <= stream.window
            and size <= self._window
            and size <= self._frame_bytes
            and not self._paused
            and self._out_bytes < self._limits.turn_bytes
        ):
            stream.window -= size
            self._window -= size
            self._data_frames += 1
            self._out.append(message_head(len(message), flags, stream.stream_id))
            self._out.append(message)
            self._out_bytes += size + HEAD_BYTES
            if not self._scheduled:
                self._scheduled = True
                self._soon(self._flush)
            return True
        if not self._unsent.fits(size):
            self._refused(self.too_slow())
            return False
        stream.add(message_prefix(len(message)), message)
        self._unsent.add(size)
        if flags & END_STREAM:
            stream.ending = head(0, DATA, END_STREAM, stream.stream_id)
        self._make_ready(stream)
        return True

    def too_slow(self) -> str:
        """What a client is told whose answers wait for it."""
        return f"{self._unsent.why('answers')}; take them as they come, or ask for less at once"

    def crowded(self, stream: Outgoing) -> bool:
        """Whether the handler of this one should wait, because of what waits in all: half of what may."""
        return stream.backlog_bytes > 0 and not self._unsent.fits(self._unsent.held_bytes)

    def end(self, stream: Outgoing, frames: bytes, *, waits: bool = True) -> None:
        """The frames that end a stream, once all before them is out. `waits`: not beside a full socket."""
        if stream.backlog_bytes:
            stream.ending = frames
        elif self._paused and waits:
            # Kept with its stream, of which there are only so many, not with what a full socket holds up.
            stream.ending = frames
            self._ending[stream.stream_id] = stream
        else:
            self._end(stream.stream_id, frames)

    def drop(self, stream: Outgoing) -> None:
        """The stream is over, whatever waits of it."""
        self._ready.pop(stream.stream_id, None)
        self._ending.pop(stream.stream_id, None)
        self._unsent.add(-stream.backlog_bytes)
        stream.drop()

    def frame_bytes(self, size: int) -> None:
        """The client takes frames of this size."""
        self._frame_bytes = size

    def widened(self, size: int) -> bool:
        """The client takes so many bytes more on the connection. False if it may not."""
        self._window += size
        if self._ready:
            self._schedule()
        return self._window <= LARGEST_WINDOW_BYTES

    def stream_widened(self, stream: Outgoing, size: int) -> bool:
        """The same of a stream; a negative size makes its window smaller."""
        stream.window += size
        self._make_ready(stream)
        return stream.window <= LARGEST_WINDOW_BYTES

    def data_frames(self) -> int:
        """How many DATA frames went out since this was asked last."""
        frames, self._data_frames = self._data_frames, 0
        return frames

    def pause(self) -> None:
        """What was written waits to be sent: hand over no more."""
        self._paused = True
        self._stick(self._wire.get_write_buffer_size())
        if not self._unsent.fits():
            # Not here: the transport is in the middle of a write.
            self._soon(self._no_room)

    def resume(self) -> None:
        """It was sent."""
        self._paused = False
        self._stick(-self._stuck_bytes)
        self._schedule()

    def finish(self) -> None:
        """Hand over what there is, as the last of the connection."""
        if not self._stopped:
            self._out.extend(stream.ending for stream in self._ending.values() if stream.ending is not None)
            self._flush_out()
        self.stop()

    def stop(self) -> None:
        """Hand over no more."""
        self._stopped = True
        self._out.clear()

    def gone(self) -> None:
        """What the socket held up is held no more."""
        self._stick(-self._stuck_bytes)

    def _stick(self, size: int) -> None:
        self._stuck_bytes += size
        self._unsent.add(size)

    def _no_room(self) -> None:
        """What a socket holds up cannot be taken back: the connection ends."""
        self._refused(self._unsent.why("answers"))
        self._unread(self._unsent.held_bytes)

    def _flush_out(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        if data:
            self._wire.write(data)

    def _flush(self) -> None:
        self._scheduled = False
        if self._paused or self._stopped:
            return
        while self._ending and self._out_bytes < self._limits.turn_bytes:
            stream_id, stream = next(iter(self._ending.items()))
            del self._ending[stream_id]
            if stream.ending is not None:
                self._end(stream_id, stream.ending)
        if self._ready:
            self._fill()
        self._flush_out()
        if self._ending or (self._ready and self._window > 0):
            self._schedule()

    def _fill(self) -> None:
        """Take of what waits, a frame a stream in turn, until this turn has enough or the window is used up."""
        ready, most = self._ready, self._limits.turn_bytes
        while ready and self._window > 0 and self._out_bytes < most:
            stream_id, stream = next(iter(ready.items()))
            if stream.window <= 0:  # its client made it smaller
                del ready[stream_id]
                continue
            data = stream.take(min(self._frame_bytes, stream.window, self._window))
            size = len(data)
            self._unsent.add(-size)
            stream.window -= size
            self._window -= size
            self._data_frames += 1
            self._out.append(head(size, DATA, 0, stream_id))
            self._out.append(data)
            self._out_bytes += size + HEAD_BYTES
            del ready[stream_id]
            if not stream.backlog_bytes:
                if stream.ending is not None:
                    self._end(stream_id, stream.ending)
            elif stream.window > 0:
                ready[stream_id] = stream

    def _end(self, stream_id: int, frames: bytes) -> None:
        self.control(frames)
        self._ended(stream_id)

    def _make_ready(self, stream: Outgoing) -> None:
        if stream.backlog_bytes and stream.window > 0:
            self._ready.setdefault(stream.stream_id, stream)
            if self._window > 0:
                self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._paused:
            self._scheduled = True
            self._soon(self._flush)
