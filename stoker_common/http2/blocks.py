"""Header blocks, from HEADERS and what CONTINUATION adds to it, as lists of fields: bounded before they are decoded."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from stoker_common.http2.answer import Answer
from stoker_common.http2.faults import ConnectionFault, protocol_error, too_much
from stoker_common.http2.frames import END_HEADERS, PADDED, WITH_PRIORITY, ErrorCode
from stoker_common.http2.limits import Limits
from stoker_common.http2.request import Request, Unfit

Fields = list[tuple[bytes, bytes]]

# Bytes that each name a field of the tables and change nothing (RFC 7541, section 6.1): what most requests are made of
# after a connection's first ones. The last, 0xff, would begin a longer number.
_NAMES_ALONE: Final = re.compile(rb"[\x80-\xfe]*")
# Different ones that a connection's requests have at a time.
_KNOWN: Final = 16
# As they come, a byte a field, and as they are decoded: a byte can stand for a field of four thousand. A request's have
# some ten fields, and what a connection keeps stays small (32 KiB at most).
_KNOWN_BYTES: Final = 256
_KNOWN_LIST_BYTES: Final = 2 << 10


class Block:
    """A whole block: its fields, and what was read from them, for the next that is alike."""

    __slots__ = ("answer", "fields", "request")

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.request: Request | Unfit | None = None
        self.answer: Answer | None = None

    @property
    def size_bytes(self) -> int:
        """Of its names and values."""
        return sum(len(name) + len(value) for name, value in self.fields)


_NONE: Final[Mapping[bytes, Block]] = MappingProxyType({})


class HeaderBlocks:
    """One connection's. A block is whole with the frame that says so; until then no other frame may come."""

    def __init__(self, limits: Limits, constant: Mapping[bytes, Block] = _NONE) -> None:
        """`constant`: blocks that refer to no table, and need not be decoded."""
        self._limits = limits
        self._constant = constant
        self._decoder = Decoder(max_header_list_size=limits.header_list_bytes)
        # Those that were decoded since the decoder's table changed, by their bytes.
        self._known: dict[bytes, Block] = {}
        self._parts: list[bytes] = []
        self._bytes = 0
        # The stream whose block is open; 0 for none.
        self.stream_id = 0
        self.flags = 0

    def begin(self, flags: int, stream_id: int, payload: bytes) -> Block | None:
        """HEADERS came. The block if that was all of it. Raises ConnectionFault."""
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

    def add(self, flags: int, stream_id: int, payload: bytes) -> Block | None:
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

    def _decoded(self, data: bytes) -> Block:
        block = self._constant.get(data) or self._known.get(data)
        if block is not None:
            return block
        try:
            block = Block([(name, value) for name, value in self._decoder.decode(data, raw=True)])
        except OversizedHeaderListError as error:
            raise too_much(f"a header list has more than {self._limits.header_list_bytes} bytes") from error
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a header block that cannot be decoded") from error
        if not _NAMES_ALONE.fullmatch(data):
            self._known.clear()  # it may have changed what names mean
        elif len(self._known) < _KNOWN and len(data) <= _KNOWN_BYTES and block.size_bytes <= _KNOWN_LIST_BYTES:
            self._known[data] = block
        return block


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding. Raises ConnectionFault."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise protocol_error("a frame's padding is longer than the frame")
    return payload[1 : len(payload) - payload[0]]
