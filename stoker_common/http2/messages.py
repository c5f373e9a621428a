"""gRPC messages out of a stream's DATA, wherever its frames begin and end; decompressed within the same limit, large
ones later and elsewhere."""

import zlib
from collections.abc import Iterator
from typing import Final

from stoker_common.http2.frames import MESSAGE_PREFIX_BYTES
from stoker_common.refusal import Code

# What zlib calls their window: gzip's container, and zlib's own, which gRPC calls deflate.
_WINDOWS: Final = {"gzip": 31, "deflate": 15}
KNOWN_ENCODINGS: Final = frozenset(("identity", *_WINDOWS))


# What is unpacked at once, in well under a millisecond. More would hold the loop: 16 MiB for 40 to 115 ms.
_AT_ONCE_BYTES: Final = 128 << 10


class Unreadable(Exception):
    """A message that cannot be taken, and the status that the call ends with."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


class Packed(bytes):
    """A message as it came, to be unpacked off the loop: zlib lets other threads run meanwhile."""

    encoding: str
    most_bytes: int

    def unpacked(self) -> bytes:
        """The message. Raises Unreadable."""
        data = _inflated(self, self.encoding, self.most_bytes)
        if data is None:
            text = f"the message has more than {self.most_bytes} bytes when it is decompressed"
            raise Unreadable(Code.RESOURCE_EXHAUSTED, text)
        return data


class MessageReader:
    """One stream's."""

    __slots__ = ("_encoding", "_held", "_most_bytes", "_needed")

    def __init__(self, most_bytes: int, encoding: str) -> None:
        self._most_bytes = most_bytes
        self._encoding = encoding
        self._held = bytearray()
        self._needed = MESSAGE_PREFIX_BYTES

    @property
    def held_bytes(self) -> int:
        """Of a message that has not wholly come."""
        return len(self._held)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are complete by now, some `Packed`. Raises Unreadable, for a length before the message is
        there."""
        held = self._held
        if held:
            held += data
            if len(held) < self._needed:
                return
            data = bytes(held)
            held.clear()
        at, size = 0, len(data)
        self._needed = MESSAGE_PREFIX_BYTES
        while size - at >= MESSAGE_PREFIX_BYTES:
            start = at + MESSAGE_PREFIX_BYTES
            length = int.from_bytes(data[at + 1 : start])
            if length > self._most_bytes:
                text = f"the message has {length} bytes, and {self._most_bytes} are taken"
                raise Unreadable(Code.RESOURCE_EXHAUSTED, text)
            if start + length > size:
                self._needed = MESSAGE_PREFIX_BYTES + length
                break
            if data[at] > 1:
                raise Unreadable(Code.INTERNAL, "a message's first byte says neither compressed nor not")
            message = data[start : start + length]
            yield self._decompressed(message) if data[at] else message
            at = start + length
        if at < size:
            held += data[at:] if at else data

    def _decompressed(self, message: bytes) -> bytes:
        data = _inflated(message, self._encoding, min(self._most_bytes, _AT_ONCE_BYTES))
        if data is None:
            later = Packed(message)
            later.encoding, later.most_bytes = self._encoding, self._most_bytes
            return later
        return data


def _inflated(message: bytes, encoding: str, most_bytes: int) -> bytes | None:
    """What the message is unpacked; None if that is more. Raises Unreadable for what is not compressed as it says."""
    window = _WINDOWS.get(encoding)
    if window is None:
        raise Unreadable(Code.INTERNAL, f"a message is compressed, and grpc-encoding says {encoding}")
    unzip = zlib.decompressobj(window)
    try:
        data = unzip.decompress(message, most_bytes + 1)
    except zlib.error as error:
        raise Unreadable(Code.INTERNAL, f"a message is not compressed with {encoding}") from error
    if len(data) > most_bytes:
        return None
    if not unzip.eof:
        raise Unreadable(Code.INTERNAL, f"a message compressed with {encoding} is cut off")
    return data
