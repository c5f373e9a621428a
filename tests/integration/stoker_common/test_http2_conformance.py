"""RFC 9113 and RFC 7541, case by case over a real socket, as h2spec's list has them; what `test_limits.py` has of that
list is not repeated here. The client is bytes, hpack and hyperframe: none of our own framing.

Each case says what it sends, and what has to come of it: the call is served, the stream or the connection ends by one
of these codes, or nothing happens and the connection goes on.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hpack import Encoder
from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from stoker_common.http2.server import Http2Server
from tests.unit.stoker_common.http2.kit import Handlers

pytestmark = pytest.mark.integration

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x4, 0x8, 0x20
PROTOCOL, FLOW, CLOSED, SIZE, REFUSED, COMPRESSION = 1, 3, 5, 6, 7, 9
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WITHIN_S = 10.0
ASKED = b"conform?"

Fields = Sequence[tuple[str, str]]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame, whatever is in it."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload


def fields(method: str = "Twice", *more: tuple[str, str], without: str = "") -> list[tuple[str, str]]:
    """A call's header list."""
    all_of_them = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/test.Service/{method}"),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
    return [each for each in all_of_them if each[0] != without] + list(more)


def block(listed: Fields | None = None, *, huffman: bool = True) -> bytes:
    """A header block, for a decoder that has not seen any."""
    return Encoder().encode(listed if listed is not None else fields(), huffman=huffman)


def opened(stream_id: int = 1, *, ends: bool = False, method: str = "Twice") -> bytes:
    """HEADERS that open a call."""
    return frame(HEADERS, END_HEADERS | (END_STREAM if ends else 0), stream_id, block(fields(method)))


def message(data: bytes = b"a") -> bytes:
    """As gRPC has it in DATA."""
    return b"\0" + struct.pack(">L", len(data)) + data


def asked(payload: bytes, stream_id: int = 1) -> bytes:
    """A call of one message, in one DATA frame, its header block as given."""
    return frame(HEADERS, END_HEADERS, stream_id, payload) + frame(DATA, END_STREAM, stream_id, message())


def word(value: int) -> bytes:
    """Four bytes."""
    return struct.pack(">L", value)


def setting(*pairs: tuple[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", *pair) for pair in pairs))


@dataclass(frozen=True, slots=True)
class Served:
    """The call on `stream` is answered."""

    stream: int = 1


@dataclass(frozen=True, slots=True)
class Stream:
    """The stream ends by one of these codes; the connection goes on."""

    codes: tuple[int, ...]
    stream: int = 1


@dataclass(frozen=True, slots=True)
class Connection:
    """The connection ends by one of these codes."""

    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Nothing:
    """No stream ends; the connection goes on."""


Wanted = Served | Stream | Connection | Nothing
RESET = opened(method="Hold") + frame(RST, 0, 1, word(8))
# Half-closed: the request has ended, the answer has not.
HOLDS = opened(method="Hold") + frame(DATA, END_STREAM, 1, message())
WAITS = opened(method="Collect")
HALF = block()[:5], block()[5:]

CASES: dict[str, tuple[bytes, Wanted]] = {
    # generic: what every server takes.
    "3.4 SETTINGS that say nothing": (asked(block()), Served()),
    "5.1 idle takes PRIORITY": (frame(PRIORITY, 0, 1, word(0) + b"\x10") + asked(block()), Served()),
    "5.1 half-closed takes WINDOW_UPDATE": (HOLDS + frame(WINDOW, 0, 1, word(9)), Nothing()),
    "5.1 half-closed takes PRIORITY": (HOLDS + frame(PRIORITY, 0, 1, bytes(5)), Nothing()),
    "5.1 half-closed takes RST_STREAM": (HOLDS + frame(RST, 0, 1, word(8)), Nothing()),
    "5.1 closed takes PRIORITY": (RESET + frame(PRIORITY, 0, 1, bytes(5)), Nothing()),
    "5.1 closed takes a late WINDOW_UPDATE": (RESET + frame(WINDOW, 0, 1, word(9)), Nothing()),
    "5.1 closed takes a late RST_STREAM": (RESET + frame(RST, 0, 1, word(8)), Nothing()),
    "6.1 DATA in several frames": (
        opened() + frame(DATA, 0, 1, message()[:2]) + frame(DATA, 0, 1) + frame(DATA, END_STREAM, 1, message()[2:]),
        Served(),
    ),
    "6.1 DATA with padding": (opened() + frame(DATA, END_STREAM | PADDED, 1, b"\5" + message() + bytes(5)), Served()),
    "6.2 HEADERS with padding": (
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\7" + block() + bytes(7)) + frame(DATA, END_STREAM, 1, message()),
        Served(),
    ),
    "6.2 HEADERS with priority": (
        frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, bytes(5) + block()) + frame(DATA, END_STREAM, 1, message()),
        Served(),
    ),
    "6.2 HEADERS with both": (
        frame(HEADERS, END_HEADERS | WITH_PRIORITY | PADDED, 1, b"\2" + bytes(5) + block() + bytes(2))
        + frame(DATA, END_STREAM, 1, message()),
        Served(),
    ),
    "6.10 several CONTINUATIONs, one of nothing": (
        frame(HEADERS, 0, 1, HALF[0])
        + frame(CONTINUATION, 0, 1)
        + frame(CONTINUATION, END_HEADERS, 1, HALF[1])
        + frame(DATA, END_STREAM, 1, message()),
        Served(),
    ),
    "8.1 a request with trailers": (
        opened() + frame(DATA, 0, 1, message()) + frame(HEADERS, END_HEADERS | END_STREAM, 1, block([("x-t", "1")])),
        Served(),
    ),
    "6.7 a PING that is an answer is not answered": (frame(PING, 1, 0, b"12345678"), Nothing()),
    "6.8 a GOAWAY from a client ends nothing": (WAITS + frame(GOAWAY, 0, 0, bytes(8) + b"bye"), Nothing()),
    "7 unknown error codes": (
        WAITS + frame(RST, 0, 1, word(0xFF)) + frame(GOAWAY, 0, 0, bytes(4) + word(0xFF)),
        Nothing(),
    ),
    # 4: frames.
    "4.1 an unknown type": (frame(0xEE, 0xFF, 7, b"what is it") + asked(block()), Served()),
    "4.1 unknown flags": (frame(PING, 0xF0, 0, ASKED) + asked(block()), Served()),
    "4.1 the reserved bit": (
        frame(HEADERS, END_HEADERS, 1 << 31 | 1, block()) + frame(DATA, 1, 1, message()),
        Served(),
    ),
    "4.2 the largest frame": (opened() + frame(DATA, END_STREAM, 1, message(bytes(16_384 - 5))), Served()),
    "4.2 a larger one": (opened() + frame(DATA, END_STREAM, 1, message(bytes(16_384))), Connection((SIZE,))),
    "4.2 HEADERS larger than that": (frame(HEADERS, END_HEADERS, 1, bytes(16_385)), Connection((SIZE,))),
    "4.3 a block broken off by PRIORITY": (
        frame(HEADERS, 0, 1, HALF[0]) + frame(PRIORITY, 0, 1, bytes(5)),
        Connection((PROTOCOL,)),
    ),
    "4.3 a block broken off by another's HEADERS": (
        frame(HEADERS, 0, 1, HALF[0]) + frame(HEADERS, END_HEADERS, 3, block()),
        Connection((PROTOCOL,)),
    ),
    "5.5 an unknown type within a block": (frame(HEADERS, 0, 1, HALF[0]) + frame(0xEE, 0, 1), Connection((PROTOCOL,))),
    # 5.1: the states of streams.
    "5.1 half-closed: DATA": (HOLDS + frame(DATA, END_STREAM, 1, b"x"), Stream((CLOSED,))),
    "5.1 half-closed: HEADERS": (HOLDS + opened(ends=True), Stream((CLOSED,))),
    "5.1 half-closed: CONTINUATION": (
        HOLDS + frame(CONTINUATION, END_HEADERS, 1, block()),
        Connection((CLOSED, PROTOCOL)),
    ),
    "5.1 closed: HEADERS": (RESET + opened(ends=True), Stream((CLOSED,))),
    "5.1 closed: CONTINUATION": (RESET + frame(CONTINUATION, END_HEADERS, 1, block()), Connection((CLOSED, PROTOCOL))),
    # h2spec wants the connection's end. A number that was passed over is closed (5.1.1), so a stream error is right.
    "5.1.1 a smaller number": (opened(5, method="Hold") + opened(3), Stream((CLOSED,), stream=3)),
    "5.3 a stream that depends on itself": (
        frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, word(1) + b"\0" + block()) + frame(DATA, 1, 1, message()),
        Served(),
    ),
    # 6: each type of frame.
    "6.2 HEADERS of no stream": (frame(HEADERS, END_HEADERS, 0, block()), Connection((PROTOCOL,))),
    "6.2 more padding than HEADERS": (
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + block()),
        Connection((PROTOCOL,)),
    ),
    "6.4 RST_STREAM of no stream": (frame(RST, 0, 0, word(8)), Connection((PROTOCOL,))),
    "6.4 RST_STREAM of three bytes": (WAITS + frame(RST, 0, 1, b"abc"), Connection((SIZE,))),
    "6.5 unknown settings": (setting((0x99, 7)) + asked(block()), Served()),
    "6.5 frames larger than any": (setting((5, 1 << 24)), Connection((PROTOCOL,))),
    "6.5.3 settings in their order": (setting((4, 100), (4, 1)) + asked(block()), Nothing()),
    "6.8 a GOAWAY on a stream": (frame(GOAWAY, 0, 1, bytes(8)), Connection((PROTOCOL,))),
    "6.9 a WINDOW_UPDATE by nothing on a stream": (WAITS + frame(WINDOW, 0, 1, word(0)), Stream((PROTOCOL,))),
    "6.9.1 a stream's window beyond all": (WAITS + frame(WINDOW, 0, 1, word((1 << 31) - 1)) * 2, Stream((FLOW,))),
    "6.9.2 a window that is opened later": (setting((4, 0)) + asked(block()) + setting((4, 100)), Served()),
    "6.9.2 a window below nothing": (
        setting((4, 3)) + asked(block()) + setting((4, 0)) + frame(WINDOW, 0, 1, word(100)),
        Served(),
    ),
    "6.9.2 a window that grows beyond all by SETTINGS": (
        WAITS + frame(WINDOW, 0, 1, word((1 << 31) - 1 - 65_535)) + setting((4, 65_536)),
        Connection((FLOW,)),
    ),
    "6.10 a CONTINUATION of no stream": (
        frame(HEADERS, 0, 1, HALF[0]) + frame(CONTINUATION, END_HEADERS, 0, HALF[1]),
        Connection((PROTOCOL,)),
    ),
    "6.10 a CONTINUATION behind a whole block": (
        WAITS + frame(CONTINUATION, END_HEADERS, 1, block()),
        Connection((PROTOCOL,)),
    ),
    "6.10 a CONTINUATION behind a CONTINUATION that ended": (
        frame(HEADERS, 0, 1, HALF[0])
        + frame(CONTINUATION, END_HEADERS, 1, HALF[1])
        + frame(CONTINUATION, END_HEADERS, 1, block()),
        Connection((PROTOCOL,)),
    ),
    "6.10 a CONTINUATION behind DATA": (
        WAITS + frame(DATA, 0, 1) + frame(CONTINUATION, END_HEADERS, 1, block()),
        Connection((PROTOCOL,)),
    ),
    # 8: what a request is made of.
    "8.1 a second HEADERS that is not the end": (
        WAITS + frame(HEADERS, END_HEADERS, 1, block([])),
        Stream((PROTOCOL,)),
    ),
    "8.1 trailers with a pseudo-header": (
        WAITS + frame(HEADERS, END_HEADERS | END_STREAM, 1, block([(":method", "POST")])),
        Stream((PROTOCOL,)),
    ),
    "8.2.1 trailers with capitals": (
        WAITS + frame(HEADERS, END_HEADERS | END_STREAM, 1, block([("X-T", "1")])),
        Stream((PROTOCOL,)),
    ),
    "8.2.2 trailers of a hop": (
        WAITS + frame(HEADERS, END_HEADERS | END_STREAM, 1, block([("connection", "close")])),
        Stream((PROTOCOL,)),
    ),
    "8.3 an unknown pseudo-header": (asked(block([(":test", "ok"), *fields()])), Stream((PROTOCOL,))),
    "8.3 no scheme": (asked(block(fields(without=":scheme"))), Stream((PROTOCOL,))),
    "8.3.1 two schemes": (asked(block([(":scheme", "http"), *fields()])), Stream((PROTOCOL,))),
    "8.3.1 two methods": (asked(block([(":method", "POST"), *fields()])), Stream((PROTOCOL,))),
    "8.3.1 an empty path": (asked(block([(":path", ""), *fields(without=":path")])), Stream((PROTOCOL,))),
    "8.2.2 transfer-encoding": (asked(block(fields("Twice", ("transfer-encoding", "chunked")))), Stream((PROTOCOL,))),
    "8.2.1 a name that is none": (asked(block(fields("Twice", ("x key", "1")))), Stream((PROTOCOL,))),
    "8.2.1 a value with a zero": (asked(block(fields("Twice", ("x-key", "a\0b")))), Stream((PROTOCOL,))),
    "8.3.1 an authority that differs from host": (asked(block(fields("Twice", ("host", "test")))), Served()),
    # HPACK.
    "7541 2.3.3 an index beyond the tables": (frame(HEADERS, 5, 1, b"\xff\x80\x01"), Connection((COMPRESSION,))),
    "7541 4.2 a table size at the block's end": (
        frame(HEADERS, 5, 1, block() + b"\x3f\x01"),
        Connection((COMPRESSION,)),
    ),
    "7541 5.1 a number without end": (frame(HEADERS, 5, 1, b"\x7f" + b"\xff" * 20), Connection((COMPRESSION,))),
    "7541 5.2 padding of eight bits": (frame(HEADERS, 5, 1, b"\0\x82\x1f\xff\x01a"), Connection((COMPRESSION,))),
    "7541 5.2 padding by zeros": (frame(HEADERS, 5, 1, b"\0\x81\x18\x01a"), Connection((COMPRESSION,))),
    "7541 5.2 an end of text": (frame(HEADERS, 5, 1, b"\0\x84" + b"\xff" * 4 + b"\x01a"), Connection((COMPRESSION,))),
    "7541 6.1 the index 0": (frame(HEADERS, 5, 1, block() + b"\x80"), Connection((COMPRESSION,))),
    "7541 6.2.1 a literal that is indexed, then used": (
        frame(HEADERS, 5, 1, block(fields("Hold")) + b"\x40\x01x\x01y")
        + frame(HEADERS, 4, 3, block() + b"\xbe")
        + frame(DATA, 1, 3, message()),
        Served(stream=3),
    ),
    "7541 6.2.2 a literal that is not indexed": (asked(block() + b"\0\x01x\x01y"), Served()),
    "7541 6.2.3 a literal that never is": (asked(block() + b"\x10\x01x\x01y"), Served()),
    "7541 6.3 a smaller table": (asked(b"\x20" + block()), Served()),
    "7541 6.3 a table larger than may be": (
        frame(HEADERS, 5, 1, b"\x3f\xe2\x1f" + block()),
        Connection((COMPRESSION,)),
    ),
    "7541 without Huffman codes": (asked(block(huffman=False)), Served()),
}


@dataclass(slots=True)
class Seen:
    """What the server said."""

    settings: bool = False
    answered: bool = False
    ended: set[int] = field(default_factory=set)
    resets: dict[int, int] = field(default_factory=dict)
    goaway: int | None = None
    closed: bool = False


@asynccontextmanager
async def client() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A server, and a connection to it on which nothing was said yet."""
    server = Http2Server()
    server.add_generic_rpc_handlers((Handlers().service(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await server.stop(None)


async def hear(reader: asyncio.StreamReader, wanted: Wanted) -> Seen:
    """Read until a PING of ours was answered and the call that is to be served has ended, or the server hangs up."""
    seen = Seen()
    async with asyncio.timeout(WITHIN_S):
        while not seen.answered or (isinstance(wanted, Served) and wanted.stream not in seen.ended):
            try:
                head = await reader.readexactly(9)
                got, size = Frame.parse_frame_header(memoryview(head))
                payload = await reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionResetError):
                seen.closed = True
                return seen
            got.parse_body(memoryview(payload))
            if not seen.settings:
                assert isinstance(got, SettingsFrame) and "ACK" not in got.flags, "a server begins with SETTINGS"
                seen.settings = True
            _note(got, seen)
    return seen


def _note(got: Frame, seen: Seen) -> None:
    if isinstance(got, PingFrame) and "ACK" in got.flags:
        assert got.opaque_data == ASKED, "an answer to what was not asked"
        seen.answered = True
    elif isinstance(got, RstStreamFrame):
        seen.resets[got.stream_id] = got.error_code
    elif isinstance(got, GoAwayFrame):
        seen.goaway = got.error_code
    if "END_STREAM" in got.flags and isinstance(got, HeadersFrame):
        seen.ended.add(got.stream_id)


@pytest.mark.parametrize(("sent", "wanted"), CASES.values(), ids=CASES.keys())
async def test_what_the_rfcs_say(sent: bytes, wanted: Wanted) -> None:
    async with client() as (reader, writer):
        writer.write(PREFACE + frame(SETTINGS, 0, 0) + sent + frame(PING, 0, 0, ASKED))
        seen = await hear(reader, wanted)
        match wanted:
            case Connection(codes):
                assert seen.closed and seen.goaway in codes
            case Stream(codes, stream):
                assert seen.resets.keys() == {stream} and seen.resets[stream] in codes
                assert seen.answered and seen.goaway is None
            case Served(stream):
                assert stream in seen.ended and not seen.resets
                assert seen.answered and seen.goaway is None
            case Nothing():
                assert seen.answered and not seen.resets and seen.goaway is None


async def test_a_clients_settings_and_pings_are_answered_in_their_order() -> None:
    """6.5.3, 6.7: also those sent before the server's own came."""
    async with client() as (reader, writer):
        writer.write(PREFACE + frame(SETTINGS, 0, 0) + setting((4, 7)) + frame(PING, 0, 0, ASKED))
        kinds = list[int]()
        async with asyncio.timeout(WITHIN_S):
            while PING not in kinds:
                got, size = Frame.parse_frame_header(memoryview(await reader.readexactly(9)))
                await reader.readexactly(size)
                if "ACK" in got.flags:
                    kinds.append(got.type or 0)
        assert kinds == [SETTINGS, SETTINGS, PING]
