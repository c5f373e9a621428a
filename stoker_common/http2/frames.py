"""HTTP/2's frames as bytes: their types, flags and errors (RFC 9113, sections 4, 6 and 7), and how one is written."""

import struct
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
# What a peer takes before it says otherwise.
FIRST_FRAME_BYTES: Final = 16_384
LARGEST_FRAME_BYTES: Final = (1 << 24) - 1
FIRST_TABLE_BYTES: Final = 4096
FIRST_WINDOW_BYTES: Final = 65_535
LARGEST_WINDOW_BYTES: Final = (1 << 31) - 1
LARGEST_STREAM_ID: Final = (1 << 31) - 1

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class Setting(IntEnum):
    """What a peer may set (RFC 9113, section 6.5.2). Others are passed over."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


_HEAD = struct.Struct(">HBBBL")
# A frame's head and, behind it, a gRPC message's: not compressed, so many bytes.
_MESSAGE_HEAD = struct.Struct(">HBBBLBL")
_PREFIX = struct.Struct(">BL")
_WORD = struct.Struct(">L")
_TWO_WORDS = struct.Struct(">LL")
_SETTING = struct.Struct(">HL")
MESSAGE_PREFIX_BYTES: Final = _PREFIX.size


def head(size: int, kind: int, flags: int, stream_id: int) -> bytes:
    """A frame's head, before `size` bytes of payload."""
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id)


def header_frames(block: bytes, flags: int, stream_id: int) -> bytes:
    """A header block: HEADERS, and where it is longer than what every peer takes in a frame, CONTINUATION after it."""
    if len(block) <= FIRST_FRAME_BYTES:
        return head(len(block), HEADERS, flags | END_HEADERS, stream_id) + block
    parts = [block[at : at + FIRST_FRAME_BYTES] for at in range(0, len(block), FIRST_FRAME_BYTES)]
    return b"".join(
        head(
            len(part),
            CONTINUATION if at else HEADERS,
            (0 if at else flags) | (END_HEADERS if at == len(parts) - 1 else 0),
            stream_id,
        )
        + part
        for at, part in enumerate(parts)
    )


def message_head(size: int, flags: int, stream_id: int) -> bytes:
    """What comes before a whole message of `size` bytes that fits into one DATA frame. Runs once a token."""
    framed = size + MESSAGE_PREFIX_BYTES
    return _MESSAGE_HEAD.pack(framed >> 8, framed & 0xFF, DATA, flags, stream_id, 0, size)


def message_prefix(size: int) -> bytes:
    """What comes before a message of `size` bytes, wherever frames begin and end."""
    return _PREFIX.pack(0, size)


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """The frame that ends a stream."""
    return head(4, RST_STREAM, 0, stream_id) + _WORD.pack(code)


def window_update(stream_id: int, size: int) -> bytes:
    """The frame that lets the peer send so many bytes more; stream 0 is the connection."""
    return head(4, WINDOW_UPDATE, 0, stream_id) + _WORD.pack(size)


def ping(payload: bytes, flags: int = 0) -> bytes:
    """A PING of eight bytes, or with ACK the answer to one."""
    return head(8, PING, flags, 0) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """The frame that says what we take."""
    payload = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return head(len(payload), SETTINGS, 0, 0) + payload


SETTINGS_ACK: Final = head(0, SETTINGS, ACK, 0)


def goaway(last_stream_id: int, code: ErrorCode, why: str = "") -> bytes:
    """The frame that says which streams are still served, and why no others."""
    payload = _TWO_WORDS.pack(last_stream_id, code) + why.encode()
    return head(len(payload), GOAWAY, 0, 0) + payload
