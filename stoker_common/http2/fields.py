"""Header blocks that we send, as HPACK literals without a table (RFC 7541, section 6.2.2): nothing to keep, to look up
or to compress, so what is the same in every answer is made once.
"""

import base64
import re
from collections.abc import Iterable
from typing import Final

# `:status 200` is the eighth of HPACK's static table, and content-type's name its thirty-first.
_STATUS_200: Final = b"\x88"
_STATUS_NAME: Final = 8
_CONTENT_TYPE_NAME: Final = 31
# What may stand in a gRPC key (its spec: lower case; gRPC's own implementations refuse others as well).
_KEY: Final = re.compile(r"[0-9a-z_.-]+")
_VALUE: Final = re.compile(r"[ -~]*")
# Percent-encoded in grpc-message: all but printable ASCII, and the sign itself.
_MESSAGE_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}

Metadata = Iterable[tuple[str, str | bytes]]


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """A number in `prefix_bits` of a byte whose others are `first`, and in what follows it (RFC 7541, section 5.1)."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes((first | value,))
    value -= most
    out = bytearray((first | most,))
    while value >= 0x80:
        out.append(0x80 | value & 0x7F)
        value >>= 7
    out.append(value)
    return bytes(out)


def string(data: bytes) -> bytes:
    """As it is, without Huffman's code (RFC 7541, section 5.2)."""
    return integer(len(data), 7) + data


def literal(name: bytes, value: bytes) -> bytes:
    """A field, its name in lower case."""
    return b"\0" + string(name) + string(value)


# Before an answer's messages.
HEADERS: Final = _STATUS_200 + integer(_CONTENT_TYPE_NAME, 4) + string(b"application/grpc")
STATUS_OK: Final = literal(b"grpc-status", b"0")
# What a message may be compressed with.
ENCODINGS: Final = "identity,deflate,gzip"
ACCEPT_ENCODING: Final = literal(b"grpc-accept-encoding", ENCODINGS.encode())
ACCEPT_IDENTITY: Final = literal(b"grpc-accept-encoding", b"identity")


def http_status(status: int) -> bytes:
    """The whole block of an answer that is none of gRPC's."""
    return integer(_STATUS_NAME, 4) + string(str(status).encode())


def status(code: int, message: str) -> bytes:
    """A call's status. Most calls end well, with nothing to say."""
    if not code and not message:
        return STATUS_OK
    block = literal(b"grpc-status", str(code).encode())
    return block + literal(b"grpc-message", percent_encoded(message)) if message else block


def percent_encoded(text: str) -> bytes:
    """A status's message as gRPC sends it. What is no UTF-8 becomes a question mark."""
    data = text.encode("utf-8", "replace")
    return b"".join(bytes((byte,)) if byte in _MESSAGE_PLAIN else b"%%%02X" % byte for byte in data)


def encoded(metadata: Metadata) -> bytes:
    """Metadata, its binary values in base64. Raises ValueError for what no client would take."""
    return b"".join(_field(key, value) for key, value in metadata)


def _field(key: str, value: str | bytes) -> bytes:
    if not _KEY.fullmatch(key) or (key.startswith("grpc-") and not key.endswith("-bin")):
        raise ValueError(f"{key!r} is no key of metadata: lower case letters, digits, and _ - . are, but not grpc-")
    if key.endswith("-bin"):
        data = value if isinstance(value, bytes) else value.encode()
        return literal(key.encode(), base64.b64encode(data).rstrip(b"="))
    text = value if isinstance(value, str) else value.decode("latin-1")
    if not _VALUE.fullmatch(text):
        raise ValueError(f"the value of {key!r} is not printable ASCII; end the key in -bin for bytes")
    return literal(key.encode(), text.encode())
