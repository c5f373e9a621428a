"""Header blocks, from HEADERS and what CONTINUATION adds to it, as lists of fields: bounded before they are decoded."""

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from stoker_common.http2.faults import ConnectionFault, protocol_error, too_much
from stoker_common.http2.frames import END_HEADERS, PADDED, WITH_PRIORITY, ErrorCode
from stoker_common.http2.limits import Limits

Fields = list[tuple[bytes, bytes]]


class HeaderBlocks:
    """One connection's. A block is whole with the frame that says so; until then no other frame may come."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._decoder = Decoder(max_header_list_size=limits.header_list_bytes)
        self._parts: list[bytes] = []
        self._bytes = 0
        # The stream whose block is open; 0 for none.
        self.stream_id = 0
        self.flags = 0

    def begin(self, flags: int, stream_id: int, payload: bytes) -> Fields | None:
        """HEADERS came. The fields if that was all of them. Raises ConnectionFault."""
        payload = unpadded(flags, payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a HEADERS frame is too short for its priority")
            payload = payload[5:]
        self.flags = flags
        if flags & END_HEADERS:
            return self._decoded(payload)
        self.stream_id = stream_id
        self._parts, self._bytes = [payload], len(payload)
        return None

    def add(self, flags: int, stream_id: int, payload: bytes) -> Fields | None:
        """CONTINUATION came. As `begin`."""
        if not self.stream_id or stream_id != self.stream_id:
            raise protocol_error("a CONTINUATION that continues nothing")
        self._parts.append(payload)
        self._bytes += len(payload)
        if self._bytes > self._limits.header_block_bytes or len(self._parts) > self._limits.header_frames:
            raise too_much(f"a header block has more than {self._limits.header_block_bytes} bytes, or too many frames")
        if not flags & END_HEADERS:
            return None
        self.stream_id = 0
        block, self._parts = b"".join(self._parts), []
        return self._decoded(block)

    def _decoded(self, block: bytes) -> Fields:
        try:
            return [(name, value) for name, value in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError as error:
            raise too_much(f"a header list has more than {self._limits.header_list_bytes} bytes") from error
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a header block that cannot be decoded") from error


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding. Raises ConnectionFault."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise protocol_error("a frame's padding is longer than the frame")
    return payload[1 : len(payload) - payload[0]]
