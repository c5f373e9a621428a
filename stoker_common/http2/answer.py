"""What a server answers, read from the fields of its HEADERS and trailers: gRPC's protocol over HTTP/2, answers."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from stoker_common.http2.faults import StreamFault
from stoker_common.http2.frames import ErrorCode
from stoker_common.http2.request import FIELD_BYTES, Metadata, entries
from stoker_common.refusal import Code

OK: Final = 0
# The protocol's own, which callers are not shown.
_OWN: Final = frozenset(
    (b"content-type", b"content-length", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-status", b"grpc-message")
)
_STATUS: Final = re.compile(rb"[1-5][0-9]{2}")
_NUMBER: Final = re.compile(rb"[0-9]{1,9}")
# What an answer that is HTTP's, not gRPC's, says of the call (gRPC's "HTTP to gRPC Status Code Mapping").
_OF_HTTP: Final = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}
# What a reset stream says of the call (gRPC's protocol, "HTTP2 Transport Mapping, Errors"). Others are INTERNAL.
_OF_RESET: Final = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
}


@dataclass(frozen=True, slots=True)
class End:
    """How a call ended: gRPC's number of its status, and what was said to it."""

    status: int
    details: str = ""
    trailing: Metadata = ()

    @classmethod
    def of(cls, code: Code, details: str) -> "End":
        """An end that was not told by the server's status."""
        return cls(code.value, details)


WELL: Final = End(OK)


@dataclass(frozen=True, slots=True)
class Answer:
    """One header block of an answer. `http_status` is None in trailers, `status` and `message` where nothing ends."""

    http_status: int | None
    content_type: bytes
    metadata: Metadata
    status: int | None
    message: str
    size_bytes: int

    @property
    def end(self) -> End:
        """What it says of the call, if it is the answer's end."""
        if self.status == OK and not self.message and not self.metadata:
            return WELL
        if self.status is not None:
            return End(self.status, self.message, self.metadata)
        if self.http_status is not None and self.http_status != 200:
            code = _OF_HTTP.get(self.http_status, Code.UNKNOWN)
            return End.of(code, f"the answer is HTTP status {self.http_status}, and none of gRPC's")
        return End.of(Code.UNKNOWN, "the answer ended without a status")

    @property
    def is_grpc(self) -> bool:
        """Whether what follows are messages, not a page that says what is wrong."""
        return self.http_status == 200 and self.content_type.startswith(b"application/grpc")


def read(stream_id: int, fields: Iterable[tuple[bytes, bytes]]) -> Answer:
    """Raises StreamFault for a header list that is malformed (RFC 9113, section 8.1.1)."""
    http_status: int | None = None
    status: int | None = None
    content_type, message, size = b"", "", 0
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        size += len(name) + len(value) + FIELD_BYTES
        if name[:1] == b":":
            if name != b":status" or http_status is not None or metadata or not _STATUS.fullmatch(value):
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "an answer's pseudo-header is not its status")
            http_status = int(value)
        elif name in _OWN:
            if name == b"content-type":
                content_type = value
            elif name == b"grpc-status":
                status = int(value) if _NUMBER.fullmatch(value) else Code.UNKNOWN.value
            elif name == b"grpc-message":
                # What is no percent-encoding stays as it is.
                message = unquote(value.decode("latin-1"), "utf-8", "replace")
        else:
            metadata.extend(entries(stream_id, name, value))
    return Answer(http_status, content_type, tuple(metadata), status, message, size)


def of_reset(code: int) -> End:
    """What a call ends with whose stream the server has reset."""
    known = next((each for each in ErrorCode if each == code), None)
    name = str(code) if known is None else known.name
    grpc_code = Code.INTERNAL if known is None else _OF_RESET.get(known, Code.INTERNAL)
    return End.of(grpc_code, f"the server reset the call's stream: {name}")
