"""What one client may not do: it is told why, it alone, and what it has is bounded meanwhile."""

import asyncio
from collections.abc import Callable

import pytest
from hpack import Encoder

from stoker_common.http2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Setting,
    head,
    ping,
    rst_stream,
    settings,
    window_update,
)
from stoker_common.http2.limits import Limits
from stoker_common.http2.server import Http2Server
from tests.unit.stoker_common.http2.kit import Client, Handlers, headers, run, served, settle

pytestmark = pytest.mark.unit

EXHAUSTED = 8


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return head(len(payload), kind, flags, stream_id) + payload


def block(method: str = "Hold") -> bytes:
    return Encoder().encode(headers(method))


async def ended(client: Client) -> ErrorCode:
    """How the server closed the connection. It says why."""
    await client.hear()
    assert client.transport.closed
    ((_, code, why),) = client.goaways
    assert why
    return code


async def pass_time(client: Client, seconds: float) -> None:
    """The client is there, and takes nothing."""
    await asyncio.sleep(seconds)
    await client.hear(take=False)


async def still_serves(server: Http2Server) -> None:
    """Another client is served as ever."""
    client = Client(server)
    stream = client.open("Twice", b"a")
    await client.hear()
    assert client.message(stream) == b"aa"


OPEN = frame(HEADERS, END_HEADERS, 1, block())
BAD = {
    "DATA on no stream": (frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA on a stream that was not opened": (frame(DATA, 0, 5, b"x"), ErrorCode.PROTOCOL_ERROR),
    "more padding than frame": (OPEN + frame(DATA, PADDED, 1, b"\x05abc"), ErrorCode.PROTOCOL_ERROR),
    "padding and no length": (OPEN + frame(DATA, PADDED, 1), ErrorCode.PROTOCOL_ERROR),
    "HEADERS on an even stream": (frame(HEADERS, END_HEADERS, 2, block()), ErrorCode.PROTOCOL_ERROR),
    "a CONTINUATION of nothing": (frame(CONTINUATION, END_HEADERS, 1), ErrorCode.PROTOCOL_ERROR),
    "a block that is broken off": (frame(HEADERS, 0, 1, block()) + ping(b"12345678"), ErrorCode.PROTOCOL_ERROR),
    "another stream's CONTINUATION": (
        frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, END_HEADERS, 3, block()),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "a block that is none": (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "HEADERS shorter than their priority": (frame(HEADERS, END_HEADERS | 0x20, 1, b"ab"), ErrorCode.FRAME_SIZE_ERROR),
    "a frame that is too large": (head(16_385, DATA, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
    "a push": (frame(PUSH_PROMISE, 0, 1, b"\0\0\0\2"), ErrorCode.PROTOCOL_ERROR),
    "a PING of seven bytes": (frame(PING, 0, 0, b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
    "a PRIORITY of four bytes": (frame(PRIORITY, 0, 1, b"1234"), ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS of five bytes": (frame(SETTINGS, 0, 0, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS on a stream": (frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "an answer to SETTINGS that says something": (frame(SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "a PING on a stream": (frame(PING, 0, 1, b"12345678"), ErrorCode.PROTOCOL_ERROR),
    "a PRIORITY of no stream": (frame(PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
    "DATA on a stream of ours": (frame(HEADERS, END_HEADERS, 3, block()) + frame(DATA, 0, 2), ErrorCode.PROTOCOL_ERROR),
    "a RST_STREAM of a stream of ours": (
        frame(HEADERS, END_HEADERS, 3, block()) + rst_stream(2, ErrorCode.CANCEL),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "a window beyond all": (frame(SETTINGS, 0, 0, b"\0\x04\xff\xff\xff\xff"), ErrorCode.FLOW_CONTROL_ERROR),
    "frames that are too small": (frame(SETTINGS, 0, 0, b"\0\x05\0\0\0\1"), ErrorCode.PROTOCOL_ERROR),
    "a push that is neither on nor off": (frame(SETTINGS, 0, 0, b"\0\x02\0\0\0\7"), ErrorCode.PROTOCOL_ERROR),
    "a WINDOW_UPDATE of three bytes": (frame(WINDOW_UPDATE, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
    "a WINDOW_UPDATE by nothing": (window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    "a WINDOW_UPDATE of a stream that was not opened": (window_update(7, 1), ErrorCode.PROTOCOL_ERROR),
    "a connection's window beyond all": (window_update(0, (1 << 31) - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "a RST_STREAM of a stream that was not opened": (rst_stream(7, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
    "a RST_STREAM of five bytes": (OPEN + frame(RST_STREAM, 0, 1, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
    "a GOAWAY that is none": (frame(0x7, 0, 0, b"1"), ErrorCode.PROTOCOL_ERROR),
}


@pytest.mark.parametrize(("data", "code"), BAD.values(), ids=BAD.keys())
def test_what_http2_forbids_ends_the_connection(data: bytes, code: ErrorCode) -> None:
    async def test() -> None:
        handlers = Handlers()
        server = served(handlers)
        client = Client(server)
        client.frames(data)
        assert await ended(client) == code
        assert not handlers.running and not client.connection.streams
        await still_serves(server)

    run(test)


MALFORMED: dict[str, Callable[[list[tuple[str, str]]], list[tuple[str, str]]]] = {
    "no path": lambda fields: [each for each in fields if each[0] != ":path"],
    "no method": lambda fields: [each for each in fields if each[0] != ":method"],
    "two paths": lambda fields: [(":path", "/x"), *fields],
    "a response's": lambda fields: [(":status", "200"), *fields],
    "out of order": lambda fields: [*fields, (":authority", "x")],
    "capitals": lambda fields: [*fields, ("X-Key", "x")],
    "a hop's": lambda fields: [*fields, ("connection", "close")],
    "te that is more than trailers": lambda fields: [*fields, ("te", "gzip")],
    "a line's end": lambda fields: [*fields, ("x-key", "a\r\nb")],
    "no base64": lambda fields: [*fields, ("x-key-bin", "!")],
    "no timeout": lambda fields: [*fields, ("grpc-timeout", "1 h")],
    "a negative timeout": lambda fields: [*fields, ("grpc-timeout", "-1S")],
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_ends_its_stream_alone(
    change: Callable[[list[tuple[str, str]]], list[tuple[str, str]]],
) -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        before = client.open("Hold", b"a")
        client.h2.get_next_available_stream_id()
        stream = before + 2
        fields = Encoder().encode(change(headers("Twice")))
        client.h2.send_headers(stream, headers("Twice"))
        client.h2.data_to_send()
        client.frames(frame(HEADERS, END_HEADERS | END_STREAM, stream, fields))
        await client.hear()
        assert client.resets == {stream: ErrorCode.PROTOCOL_ERROR}
        assert list(client.connection.streams) == [before]

    run(test)


def test_metadata_beyond_the_limit_is_refused_and_far_beyond_ends_the_connection() -> None:
    async def test() -> None:
        server = served(Handlers())
        client = Client(server)
        stream = client.open("Twice", b"a", metadata=(("x-long", "x" * 20_000),))
        await client.hear()
        assert client.status(stream) == EXHAUSTED
        # Of a bomb each byte names a field of four thousand: it is not unpacked.
        encoder = Encoder()
        big = encoder.encode([*headers("Twice"), ("x-big", "x" * 3900)])
        fields = big + b"\xbe" * 5_000
        client = Client(server)
        client.frames(frame(HEADERS, END_HEADERS, 1, fields))
        assert await ended(client) == ErrorCode.ENHANCE_YOUR_CALM
        await still_serves(server)

    run(test)


@pytest.mark.parametrize("size", [0, 16_384])
def test_a_header_block_without_end(size: int) -> None:
    """CVE-2024-27316."""

    async def test() -> None:
        client = Client(served(Handlers()))
        client.frames(frame(HEADERS, 0, 1, block()))
        for _ in range(100):
            client.frames(frame(CONTINUATION, 0, 1, bytes(size)))
        assert await ended(client) == ErrorCode.ENHANCE_YOUR_CALM

    run(test)


def test_streams_that_are_reset_at_once() -> None:
    """CVE-2023-44487: handlers that have not ended count as streams, and resets have a budget."""

    async def test() -> None:
        handlers = Handlers()
        server = served(handlers, Limits(streams=10, resets_burst=100, resets_per_s=10.0))
        client = Client(server)
        opened = 0
        while not client.transport.closed:
            opened += 1
            client.frames(
                frame(HEADERS, END_HEADERS | END_STREAM, 2 * opened - 1, block("Collect"))
                + rst_stream(2 * opened - 1, ErrorCode.CANCEL)
            )
            assert len(client.connection.streams) <= 10
            assert opened < 1000
        assert opened <= 111
        assert await ended(client) == ErrorCode.ENHANCE_YOUR_CALM
        assert not handlers.running
        await still_serves(server)

    run(test)


def test_resets_within_the_budget_are_taken_for_ever() -> None:
    async def test() -> None:
        client = Client(served(Handlers(), Limits(resets_burst=10, resets_per_s=10.0)))
        for _ in range(100):
            client.cancel(client.open("Hold", b"a"))
            await client.hear()
            await asyncio.sleep(0.1)
        assert not client.transport.closed and not client.connection.streams

    run(test)


def test_streams_we_are_made_to_reset_have_the_same_budget() -> None:
    """CVE-2025-8671."""

    async def test() -> None:
        client = Client(served(Handlers(), Limits(resets_burst=100, resets_per_s=10.0)))
        opened = 0
        while not client.transport.closed:
            opened += 1
            assert opened < 1000
            client.frames(frame(HEADERS, END_HEADERS, 2 * opened - 1, block()) + window_update(2 * opened - 1, 0))
        assert opened == 101
        assert await ended(client) == ErrorCode.ENHANCE_YOUR_CALM

    run(test)


def test_more_streams_than_may_be_are_refused_one_by_one() -> None:
    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers, Limits(streams=3)))
        for number in (1, 3, 5, 7):
            client.h2.send_headers(number, headers("Hold"))
            client.say(number, b"a", end=True)
        await client.hear()
        assert client.resets == {7: ErrorCode.REFUSED_STREAM}
        assert handlers.running == 3

    run(test)


FLOODS = {
    "PING": ping(b"12345678"),
    "answers to PINGs": ping(b"12345678", 1),
    "SETTINGS": settings({}),
    "answers to SETTINGS": frame(SETTINGS, 1, 0),
    "PRIORITY": frame(PRIORITY, 0, 1, bytes(5)),
    "empty DATA": frame(DATA, 0, 1),
    "padding": frame(DATA, PADDED, 1, b"\x03abc"),
    "WINDOW_UPDATE": window_update(1, 1),
    "WINDOW_UPDATE of the connection": window_update(0, 1),
    "GOAWAY": frame(0x7, 0, 0, bytes(8)),
    "unknown frames": frame(0xEE, 0, 0, b"x"),
    "resets of what is over": rst_stream(3, ErrorCode.CANCEL),
    "trailers of what is over": frame(HEADERS, END_HEADERS | END_STREAM, 3, block()),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_frames_that_carry_nothing_have_a_budget(flood: bytes) -> None:
    async def test() -> None:
        server = served(Handlers(), Limits(control_burst=1000, control_per_s=100.0))
        client = Client(server)
        client.open("Stay", end=False)
        client.cancel(client.open("Stay", end=False))
        await client.hear()
        for _ in range(300):
            client.frames(flood * 5)
            if client.transport.closed:
                break
        assert await ended(client) == ErrorCode.ENHANCE_YOUR_CALM
        await still_serves(server)

    run(test)


def test_settings_cost_as_many_streams_as_they_touch() -> None:
    async def test() -> None:
        client = Client(served(Handlers(), Limits(control_burst=1000, control_per_s=0.0)))
        for _ in range(1000):
            client.open("Stay", end=False)
        await client.hear()
        for _ in range(4):
            client.frames(settings({Setting.INITIAL_WINDOW_SIZE: 1}))
        assert await ended(client) == ErrorCode.ENHANCE_YOUR_CALM

    run(test)


def test_a_client_that_takes_much_may_say_so_often() -> None:
    async def test() -> None:
        client = Client(served(Handlers(), Limits(control_burst=200, control_per_s=0.0)))
        stream = client.open("Send", b"2000 1000")
        await client.hear()
        assert len(client.messages[stream]) == 2000 * 1005
        assert stream in client.ended

    run(test)


def test_a_client_that_reads_no_answers_is_hung_up_on() -> None:
    async def test() -> None:
        server = served(Handlers(), Limits(control_bytes=1000))
        client = Client(server)
        await client.hear()
        client.connection.pause_writing()
        for _ in range(100):
            client.frames(ping(b"12345678"))
        assert client.transport.closed
        await settle()
        await still_serves(server)

    run(test)


def test_what_waits_to_be_read_is_bounded_for_all_streams_together() -> None:
    async def test() -> None:
        client = Client(served(Handlers(), Limits(unread_bytes=1_000_000)))
        await client.hear()
        streams = [client.open("Twice", end=False) for _ in range(4)]
        for stream in streams:
            client.data(stream, b"\0\0\x10\0\0" + bytes(300_000))
        await client.hear()
        assert client.status(streams[-1]) == EXHAUSTED
        assert set(client.connection.streams) == set(streams[:-1])

    run(test)


def test_the_metadata_of_all_calls_together_is_bounded() -> None:
    """A byte of a header block stands for a field of four thousand, on each of thousands of streams."""

    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers, Limits(all_metadata_bytes=10_000)))
        long = (("x-long", "x" * 4_000),)
        streams = [client.open("Hold", b"a", metadata=long) for _ in range(3)]
        await client.hear()
        assert client.status(streams[2]) == EXHAUSTED
        assert handlers.running == 2
        client.cancel(streams[0])
        await client.hear()
        client.open("Hold", b"a", metadata=long)
        await client.hear()
        assert handlers.running == 2 and set(client.connection.streams) == {streams[1], streams[2] + 2}

    run(test)


def test_empty_messages_that_nobody_reads_are_bounded_by_the_window() -> None:
    async def test() -> None:
        client = Client(served(Handlers(), Limits(unread_bytes=100_000)))
        stream = client.open("Stay", end=False)
        client.data(stream, bytes(5) * 3_000)
        await client.hear()
        assert client.status(stream) == EXHAUSTED

    run(test)


def test_more_data_than_a_streams_window() -> None:
    async def test() -> None:
        client = Client(served(Handlers(), Limits(stream_window_bytes=10_000)))
        stream = client.open("Stay", end=False)
        await client.hear()
        client.frames(frame(DATA, 0, stream, bytes([0, 0, 0, 0x27, 0]) + bytes(9_999)))
        await client.hear()
        assert client.resets == {stream: ErrorCode.FLOW_CONTROL_ERROR}

    run(test)


@pytest.mark.parametrize("sent", [None, b"", PREFACE[:10], PREFACE])
def test_who_does_not_begin_is_hung_up_on(sent: bytes | None) -> None:
    async def test() -> None:
        client = Client(served(Handlers()), greet=False)
        if sent is not None:
            client.frames(sent)
        await asyncio.sleep(Limits().handshake_s - 0.1)
        assert not client.transport.closed
        await asyncio.sleep(0.2)
        assert client.transport.closed

    run(test)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"x", PREFACE + ping(b"12345678")])
def test_who_begins_otherwise_is_hung_up_on_at_once(sent: bytes) -> None:
    async def test() -> None:
        client = Client(served(Handlers()), greet=False)
        client.frames(sent)
        assert client.transport.closed

    run(test)


def test_a_client_that_vanished_is_gone_within_its_time() -> None:
    async def test() -> None:
        handlers = Handlers()
        limits = Limits()
        client = Client(served(handlers))
        client.open("Hold", b"a")
        await client.hear()
        for _ in range(3):
            # It answers while it is there.
            await asyncio.sleep(limits.ping_interval_s + 0.1)
            await client.hear()
        assert not client.transport.closed
        await asyncio.sleep(limits.ping_interval_s + limits.ping_timeout_s + 0.2)
        await asyncio.sleep(limits.ping_interval_s)
        assert client.transport.closed and not handlers.running

    run(test)


def test_an_answer_that_nobody_takes_is_kept_for_its_time() -> None:
    async def test() -> None:
        handlers, limits = Handlers(), Limits(linger_s=10.0, ping_interval_s=1000.0)
        client = Client(served(handlers, limits), window=100)
        await client.hear()
        stream = client.open("Send", b"1 1000")
        await client.hear(take=False)
        assert not handlers.running and client.connection.streams
        for _ in range(4):
            client.h2.increment_flow_control_window(100, stream)
            client.frames(client.h2.data_to_send())
            await pass_time(client, 4.0)
        assert client.connection.streams
        for _ in range(5):
            await pass_time(client, 4.0)
        assert client.resets == {stream: ErrorCode.CANCEL}
        assert not client.connection.streams

    run(test)
