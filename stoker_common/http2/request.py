"""What a client asks for, read from the fields of its HEADERS: gRPC's protocol over HTTP/2, requests."""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from stoker_common.http2.faults import StreamFault
from stoker_common.http2.frames import ErrorCode

Metadata = tuple[tuple[str, str | bytes], ...]

_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
# Of a hop, not of a request: RFC 9113, section 8.2.2.
_HOP: Final = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
# The protocol's own, which services are not shown.
_OWN: Final = frozenset(
    (b"te", b"content-type", b"content-length", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding")
)
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
# 2^63 bytes have nineteen digits.
_LENGTH: Final = re.compile(rb"[0-9]{1,19}")
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_FORBIDDEN: Final = re.compile(rb"[\0\r\n]")
FIELD_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Request:
    """A call that begins. `timeout_s` is None without a deadline; `size_bytes` as RFC 9113 counts a header list."""

    path: str
    metadata: Metadata
    timeout_s: float | None
    encoding: str
    size_bytes: int
    # What all its DATA have together, if it was said.
    content_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Unfit:
    """HTTP, but not gRPC: answered with a status of HTTP's."""

    http_status: int


def read(stream_id: int, fields: Iterable[tuple[bytes, bytes]]) -> Request | Unfit:
    """The request in a header list. Raises StreamFault for a malformed one (RFC 9113, section 8.1.1)."""
    pseudo: dict[bytes, bytes] = {}
    metadata: list[tuple[str, str | bytes]] = []
    timeout_s: float | None = None
    encoding, content_type, size = "identity", b"", 0
    content_bytes: int | None = None
    for name, value in fields:
        size += len(name) + len(value) + FIELD_BYTES
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or metadata or content_type:
                raise _malformed(stream_id, "its pseudo-headers are not those of a request")
            pseudo[name] = value
        elif name in _OWN:
            if name == b"content-type":
                content_type = value
            elif name == b"grpc-timeout":
                timeout_s = _timeout_s(stream_id, value)
            elif name == b"content-length":
                # RFC 9110, section 8.6: said twice, it has to say the same.
                if not _LENGTH.fullmatch(value) or content_bytes not in (None, int(value)):
                    raise _malformed(stream_id, "its content-length is none")
                content_bytes = int(value)
            elif name == b"grpc-encoding":
                encoding = value.decode("latin-1")
            elif name == b"te" and value != b"trailers":
                # RFC 9113, section 8.2.2.
                raise _malformed(stream_id, "its te says more than trailers")
        else:
            metadata.extend(entries(stream_id, name, value))
    if not pseudo.get(b":path") or b":method" not in pseudo or b":scheme" not in pseudo:
        raise _malformed(stream_id, "it lacks a method, a scheme or a path")
    if pseudo[b":method"] != b"POST":
        return Unfit(405)
    if not content_type.startswith(b"application/grpc") or content_type[16:17] not in (b"", b"+", b";"):
        return Unfit(415)
    return Request(pseudo[b":path"].decode("latin-1"), tuple(metadata), timeout_s, encoding, size, content_bytes)


def entries(stream_id: int, name: bytes, value: bytes) -> list[tuple[str, str | bytes]]:
    """What a field says as metadata. Raises StreamFault for one that may not be there."""
    if not _NAME.fullmatch(name) or name in _HOP or _FORBIDDEN.search(value):
        raise _malformed(stream_id, "one of its fields may not be there")
    key = name.decode("ascii")
    if not key.endswith("-bin"):
        return [(key, value.decode("latin-1"))]
    try:
        # Several values of one key may come joined by commas, and padding is optional.
        return [(key, base64.b64decode(each + b"=" * (-len(each) % 4), validate=True)) for each in value.split(b",")]
    except binascii.Error:
        raise _malformed(stream_id, f"{key} is no base64") from None


def _timeout_s(stream_id: int, value: bytes) -> float:
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise _malformed(stream_id, "its grpc-timeout is none")
    return int(match[1]) * _UNIT_S[match[2]]


def _malformed(stream_id: int, why: str) -> StreamFault:
    return StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, f"a header list is malformed: {why}")
