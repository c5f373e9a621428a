"""Header blocks that a client sends. What is the same in every call of a method is put into the server's table once
(RFC 7541, section 2.3.2), and is a byte a field from then on: neither end has to write or read it again.
"""

from typing import Final

from stoker_common.http2 import fields
from stoker_common.http2.frames import FIRST_TABLE_BYTES

# `:method POST` and `:scheme http` are of HPACK's static table, as are these fields' names.
_POST_HTTP: Final = b"\x83\x86"
_NAMES: Final = {b":authority": 1, b":path": 4, b"content-type": 31, b"user-agent": 58}
_STATIC: Final = 61
# What an entry costs beside its bytes (RFC 7541, section 4.1).
_ENTRY_BYTES: Final = 32
_NO_TABLE: Final = b"\x20"
_SAME: Final = (
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"stoker"),
    (b"grpc-accept-encoding", b"identity"),
)
# gRPC's units, each with the most nanoseconds that its eight digits hold.
_UNITS: Final = ((b"n", 1), (b"u", 10**3), (b"m", 10**6), (b"S", 10**9), (b"M", 60 * 10**9), (b"H", 3600 * 10**9))
_MOST: Final = 99_999_999


class RequestBlocks:
    """One connection's. Blocks are made in the order in which they are sent. Nothing is ever taken out of the table:
    where it is full, what is new is written in full."""

    def __init__(self, authority: str) -> None:
        self._authority = authority.encode()
        self._entries: dict[tuple[bytes, bytes], int] = {}
        self._left_bytes = FIRST_TABLE_BYTES
        self._shrunk = False
        # Of methods whose fields are all in the table.
        self._known: dict[str, bytes] = {}

    def limit(self, table_bytes: int) -> None:
        """The server keeps a table of so many bytes. A smaller one than every server keeps at first is not used."""
        if table_bytes < FIRST_TABLE_BYTES and self._left_bytes >= 0:
            self._entries.clear()
            self._known.clear()
            self._left_bytes = -1
            self._shrunk = True

    def block(self, path: str) -> bytes:
        """The fields of every call of a method. What a call has beside them goes after."""
        block = self._known.get(path)
        if block is not None:
            return block
        before = len(self._entries)
        first = _NO_TABLE + _POST_HTTP if self._shrunk else _POST_HTTP
        self._shrunk = False
        named = ((b":path", path.encode()), (b":authority", self._authority), *_SAME)
        block = first + b"".join(self._field(name, value) for name, value in named)
        if len(self._entries) != before:
            self._known.clear()  # each new entry moves the others on
        elif self._left_bytes >= 0:
            self._known[path] = block
        return block

    def _field(self, name: bytes, value: bytes) -> bytes:
        at = self._entries.get((name, value))
        if at is not None:
            return fields.integer(_STATIC + len(self._entries) - at, 7, 0x80)
        size = len(name) + len(value) + _ENTRY_BYTES
        kept = size <= self._left_bytes
        if kept:
            self._left_bytes -= size
            self._entries[name, value] = len(self._entries)
        known = _NAMES.get(name)
        first, bits = (0x40, 6) if kept else (0x00, 4)
        named = fields.integer(known or 0, bits, first)
        return named + (b"" if known else fields.string(name)) + fields.string(value)


def timeout(left_s: float) -> bytes:
    """The field that tells how long a call may take."""
    left_ns = max(1, int(left_s * 1e9))
    for unit, size_ns in _UNITS:
        if left_ns <= _MOST * size_ns:
            # Not sooner than it was said.
            return fields.literal(b"grpc-timeout", b"%d%s" % (-(-left_ns // size_ns), unit))
    return b""  # longer than can be said is for ever
