"""A client's bytes, cut into frames. Holds no more than one frame that has not wholly come."""

from collections.abc import Iterator
from typing import NamedTuple

from stoker_common.http2.faults import ConnectionFault, protocol_error
from stoker_common.http2.frames import HEAD_BYTES, PREFACE, ErrorCode


class Frame(NamedTuple):
    """One frame. Its type and flags are the RFC's numbers."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class FrameReader:
    """Fed with whatever came, in pieces of any size. A client begins with the preface, a server does not."""

    def __init__(self, frame_bytes: int, *, greeted: bool = False) -> None:
        self._frame_bytes = frame_bytes
        self._held = bytearray()
        self._greeted = greeted
        self._needed = HEAD_BYTES if greeted else len(PREFACE)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete by now, one by one. Raises ConnectionFault. Read it to its end."""
        held = self._held
        if held:
            held += data
            # Not before the whole frame is there: of one-byte pieces each would be looked at again and again.
            if len(held) < self._needed:
                return
            data = bytes(held)
            held.clear()
        at, size = 0, len(data)
        if not self._greeted:
            if not data.startswith(PREFACE[:size]):
                raise protocol_error("this is HTTP/2, in the clear, and that was no HTTP/2 preface")
            if size < len(PREFACE):
                held += data
                return
            self._greeted = True
            at = len(PREFACE)
        limit = self._frame_bytes
        while size - at >= HEAD_BYTES:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if length > limit:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame has {length} bytes, and {limit} are taken")
            end = at + HEAD_BYTES + length
            if end > size:
                break
            stream_id = int.from_bytes(data[at + 5 : at + HEAD_BYTES]) & 0x7FFFFFFF
            yield Frame(data[at + 3], data[at + 4], stream_id, data[at + HEAD_BYTES : end])
            at = end
        rest = size - at
        self._needed = HEAD_BYTES
        if rest:
            held += data[at:]
            if rest >= HEAD_BYTES:
                self._needed += held[0] << 16 | held[1] << 8 | held[2]
