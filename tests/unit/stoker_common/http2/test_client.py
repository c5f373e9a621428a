"""A channel's calls, answered by another implementation of HTTP/2: what is asked, in how many writes, how it ends."""

import asyncio

import grpc
import pytest

from stoker_common.http2.frames import DATA, HEADERS, ErrorCode, head, message_prefix, rst_stream
from stoker_common.http2.limits import client_limits
from tests.unit.stoker_common.http2.kit import run, settle
from tests.unit.stoker_common.http2.peer_kit import (
    CONCURRENT,
    TABLE,
    WINDOW,
    Network,
    both,
    failed,
    streamed,
    unary,
)

pytestmark = pytest.mark.unit

Status = grpc.StatusCode
ASKED = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/test.Service/Twice",
    ":authority": "127.0.0.1:5",
    "te": "trailers",
    "content-type": "application/grpc",
    "user-agent": "stoker",
    "grpc-accept-encoding": "identity",
}


def test_a_call() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            call = unary(channel)
            peer = await net.peer()
            assert peer.asked == {1: ASKED} and peer.messages(1) == [b"ab"] and peer.ended == {1}
            peer.answer(1, b"abab")
            assert await call == b"abab"
            assert not peer.connection.streams and not peer.resets

    run(test)


def test_what_is_asked_in_a_turn_is_one_write() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            await channel.channel_ready()
            peer = await net.peer()
            before = peer.transport.writes
            calls = [unary(channel, request=b"%d" % i) for i in range(50)]
            await peer.hear()
            assert peer.transport.writes == before + 1
            for stream_id in peer.asked:
                peer.answer(stream_id, peer.messages(stream_id)[0] * 2)
            assert [await call for call in calls] == [b"%d" % i * 2 for i in range(50)]

    run(test)


@pytest.mark.parametrize("table", [None, 0, 100, 4095, 4096, 65_536])
def test_what_all_calls_have_is_said_once_and_understood_ever_after(table: int | None) -> None:
    async def test() -> None:
        net = Network({} if table is None else {TABLE: table})
        # So many methods that the table does not hold them all.
        methods = ["A", "B", "A", "B", *(f"M{'x' * i}" for i in range(80)), "A", "M", "Mx"]
        async with net.channel() as channel:
            sizes = {}
            for at, method in enumerate(methods):
                call = unary(channel, method, metadata=(("x-own", "1"),), timeout=5.0)
                peer = await net.peer()
                stream_id = 2 * at + 1
                told = peer.asked[stream_id]
                assert float(told.pop("grpc-timeout")[:-1]) > 0
                assert told == ASKED | {":path": f"/test.Service/{method}", "x-own": "1"}
                sizes[method] = len(peer.heard)
                peer.heard.clear()
                peer.answer(stream_id, b"")
                await call
            if table is None or table >= 4096:
                assert sizes["A"] < sizes["M" + "x" * 79] - 70

    run(test)


def test_calls_wait_for_a_stream_to_be_free() -> None:
    async def test() -> None:
        net = Network({CONCURRENT: 2})
        async with net.channel() as channel:
            calls = [unary(channel, request=b"%d" % i) for i in range(5)]
            late = unary(channel, timeout=1.0)
            peer = await net.peer()
            assert sorted(peer.asked) == [1, 3]
            peer.answer(1, b"a")
            await peer.hear()
            assert sorted(peer.asked) == [1, 3, 5]
            calls[1].cancel()
            await peer.hear()
            assert sorted(peer.asked) == [1, 3, 5, 7]
            # What was cancelled while it waited never begins, nor what is late.
            calls[4].cancel()
            await asyncio.sleep(1.1)
            assert (await failed(late))[0] is Status.DEADLINE_EXCEEDED
            peer.h2.update_settings({CONCURRENT: 10})
            peer.flush()
            calls += [unary(channel), unary(channel)]
            await peer.hear()
            assert sorted(peer.asked) == [1, 3, 5, 7, 9, 11]

    run(test)


def test_an_answer_that_is_a_status_alone() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            call = streamed(channel)
            peer = await net.peer()
            fields = [
                (":status", "200"),
                ("content-type", "application/grpc"),
                ("grpc-status", "5"),
                ("grpc-message", "none of it, 100 %25 sure: %C3%BC%0A%zz"),
                ("why-bin", "AAE"),
                ("why-bin", "AAE=,Ag=="),
            ]
            peer.h2.send_headers(1, fields, end_stream=True)
            peer.flush()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            error = caught.value
            assert (error.code(), error.details()) == (Status.NOT_FOUND, "none of it, 100 % sure: ü\n%zz")
            assert list(error.trailing_metadata()) == [
                ("why-bin", b"\0\1"),
                ("why-bin", b"\0\1"),
                ("why-bin", b"\2"),
            ]

    run(test)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("400", Status.INTERNAL),
        ("401", Status.UNAUTHENTICATED),
        ("403", Status.PERMISSION_DENIED),
        ("404", Status.UNIMPLEMENTED),
        ("429", Status.UNAVAILABLE),
        ("500", Status.UNKNOWN),
        ("503", Status.UNAVAILABLE),
    ],
)
def test_an_answer_of_http(status: str, code: grpc.StatusCode) -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            whole, paged = unary(channel), unary(channel)
            peer = await net.peer()
            peer.h2.send_headers(1, [(":status", status)], end_stream=True)
            peer.h2.send_headers(3, [(":status", status), ("content-type", "text/html")])
            peer.h2.send_data(3, b"<html>", end_stream=True)
            peer.flush()
            assert await failed(whole) == (code, f"the answer is HTTP status {status}, and none of gRPC's")
            assert (await failed(paged))[0] is code

    run(test)


@pytest.mark.parametrize(
    ("reset", "code"),
    [
        (ErrorCode.NO_ERROR, Status.INTERNAL),
        (ErrorCode.INTERNAL_ERROR, Status.INTERNAL),
        (ErrorCode.REFUSED_STREAM, Status.UNAVAILABLE),
        (ErrorCode.CANCEL, Status.CANCELLED),
        (ErrorCode.ENHANCE_YOUR_CALM, Status.RESOURCE_EXHAUSTED),
        (77, Status.INTERNAL),
    ],
)
def test_a_stream_that_the_server_resets(reset: ErrorCode, code: grpc.StatusCode) -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            call, other = unary(channel), unary(channel)
            peer = await net.peer()
            peer.frames(rst_stream(1, reset))
            assert (await failed(call))[0] is code
            peer.answer(3, b"b")
            assert await other == b"b"

    run(test)


def test_a_status_that_nobody_knows_is_unknown() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            calls = [unary(channel) for _ in range(3)]
            peer = await net.peer()
            peer.answer(1, status=99, message="new")
            peer.begin(3)
            peer.trailers(3, ("grpc-status", "no number"))
            peer.begin(5)
            peer.trailers(5, ("x", "y"))
            assert await failed(calls[0]) == (Status.UNKNOWN, "new")
            assert (await failed(calls[1]))[0] is Status.UNKNOWN
            assert await failed(calls[2]) == (Status.UNKNOWN, "the answer ended without a status")

    run(test)


def test_mistakes_of_a_stream_end_it_alone() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            calls = [unary(channel) for _ in range(7)]
            peer = await net.peer()
            peer.frames(head(6, DATA, 0, 1) + message_prefix(1) + b"x")  # before headers
            peer.begin(3)
            peer.h2.send_data(3, message_prefix(1) + b"x", end_stream=True)  # the end, and no trailers
            peer.begin(5)
            peer.frames(head(1, HEADERS, 4, 5) + b"\x88")  # a second block, and no end
            peer.frames(head(1, HEADERS, 4, 7) + b"\x84")  # no status
            peer.begin(9)
            peer.h2.send_data(9, message_prefix(5) + b"x")
            peer.end(9)  # within a message
            peer.h2.send_headers(11, [(":status", "103"), ("link", "x")])
            peer.answer(11, b"well")
            peer.answer(13, b"one", b"two")
            statuses = [(await failed(calls[at]))[0] for at in (0, 1, 2, 3, 4, 6)]
            assert statuses == [Status.INTERNAL] * 6
            assert await calls[5] == b"well"
            assert not peer.transport.closed and not peer.connection.streams

    run(test)


def test_messages_in_pieces_and_one_that_is_compressed() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            call, zipped = streamed(channel), unary(channel)
            peer = await net.peer()
            peer.begin(1)
            for byte in message_prefix(3) + b"abc" + message_prefix(0):
                peer.h2.send_data(1, bytes([byte]), pad_length=byte % 5)
            for byte in peer.h2.data_to_send():
                peer.frames(bytes([byte]))
            assert [await call.read(), await call.read()] == [b"abc", b""]
            peer.begin(3, ("grpc-encoding", "gzip"))
            peer.h2.send_data(3, b"\1\0\0\0\1x")
            peer.flush()
            assert (await failed(zipped))[0] is Status.INTERNAL
            call.cancel()

    run(test)


def test_a_message_that_is_too_large_is_refused_by_its_length() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            call = unary(channel)
            peer = await net.peer()
            peer.begin(1)
            peer.h2.send_data(1, message_prefix(65 << 20) + b"x")
            peer.flush()
            assert (await failed(call))[0] is Status.RESOURCE_EXHAUSTED
            await peer.hear()
            assert peer.resets == {1: ErrorCode.CANCEL}

    run(test)


def test_metadata_that_are_too_large() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            call = unary(channel)
            peer = await net.peer()
            peer.begin(1, *((f"x-{i}", "y" * 1000) for i in range(17)))
            assert (await failed(call))[0] is Status.RESOURCE_EXHAUSTED
            other = unary(channel)
            await peer.hear()
            peer.answer(3, b"b")
            assert await other == b"b"

    run(test)


def test_what_nobody_reads_is_not_asked_for() -> None:
    async def test() -> None:
        net = Network()
        limits = client_limits()
        async with net.channel() as channel:
            call, other = streamed(channel), streamed(channel)
            peer = await net.peer()
            peer.begin(1)
            sent = 0
            while room := min(16_000, peer.h2.local_flow_control_window(1)):
                peer.h2.send_data(1, b"\0" * room if sent else (message_prefix(16_000) + bytes(room - 5)))
                peer.flush()
                sent += room
                await peer.hear()
            assert sent <= limits.stream_window_bytes
            # Others have theirs.
            peer.begin(3)
            peer.say(3, b"x" * 1000)
            assert await other.read() == b"x" * 1000
            for _ in range(20):
                await call.read()
            while call._inbox.messages:
                await call.read()
            await peer.hear()
            assert peer.h2.local_flow_control_window(1) >= limits.stream_window_bytes // 2
            call.cancel()
            other.cancel()

    run(test)


def test_what_all_streams_have_unread_is_bounded() -> None:
    async def test() -> None:
        net = Network()
        limits = client_limits()
        async with net.channel(type(limits)(unread_bytes=100_000, pings_idle=False)) as channel:
            calls = [streamed(channel) for _ in range(3)]
            peer = await net.peer()
            for stream_id in (1, 3, 5):
                peer.begin(stream_id)
                for _ in range(10):
                    peer.say(stream_id, b"x" * 4000)
            await peer.hear()
            assert peer.resets == {5: ErrorCode.CANCEL}
            assert [len([await call.read() for _ in range(10)]) for call in calls[:2]] == [10, 10]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while True:
                    await calls[2].read()
            assert caught.value.code() is Status.RESOURCE_EXHAUSTED
            for call in calls:
                call.cancel()

    run(test)


def test_a_writer_waits_for_its_server() -> None:
    async def test() -> None:
        net = Network({WINDOW: 1000})
        async with net.channel() as channel:
            call = both(channel)
            written = 0

            async def write() -> None:
                nonlocal written
                for _ in range(100):
                    await call.write(bytes(1000))
                    written += 1
                await call.done_writing()

            writing = asyncio.ensure_future(write())
            await settle()
            await settle()
            assert 30 <= written <= 35
            put = 0
            while call.put(bytes(1000)):
                put += 1
            assert put <= 2
            peer = await net.peer()
            await writing
            await peer.hear()
            assert peer.messages(1) == [bytes(1000)] * (100 + put) and peer.ended == {1}
            peer.answer(1, b"done")
            assert await call.read() == b"done"
            assert await call.read() is grpc.aio.EOF

    run(test)


def test_an_answer_that_ends_before_all_was_asked_resets_the_stream() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            call = both(channel)
            await call.write(b"a")
            peer = await net.peer()
            peer.answer(1, status=8, message="enough")
            assert await failed(call.read()) == (Status.RESOURCE_EXHAUSTED, "enough")
            await peer.hear()
            assert peer.resets == {1: ErrorCode.NO_ERROR}
            with pytest.raises(asyncio.InvalidStateError):
                await call.write(b"b")

    run(test)


def test_messages_are_heard_in_the_turn_in_which_they_came() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            call = both(channel)
            await call.write(b"a")
            peer = await net.peer()
            peer.begin(1)
            peer.say(1, b"first")
            assert await call.read() == b"first"
            peer.say(1, b"before")
            heard: list[bytes] = []
            call.hear(heard.append)
            reading = asyncio.ensure_future(call.read())
            await settle()
            peer.say(1, b"now")
            assert heard == [b"before", b"now"] and not reading.done()
            peer.end(1)
            assert await reading is grpc.aio.EOF

    run(test)


def test_what_hearing_raises_ends_the_call_and_is_its_readers() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            call, other = both(channel), both(channel)
            await call.write(b"a")
            await other.write(b"a")
            peer = await net.peer()

            def refuse(_: bytes) -> None:
                raise ValueError("unwelcome")

            call.hear(refuse)
            reading = asyncio.ensure_future(call.read())
            await settle()
            for stream_id in (1, 3):
                peer.begin(stream_id)
                peer.say(stream_id, b"x")
            with pytest.raises(ValueError, match="unwelcome"):
                await reading
            assert call.cancelled() and await other.read() == b"x"
            await peer.hear()
            assert peer.resets == {1: ErrorCode.CANCEL}

    run(test)


def test_metadata_and_credentials_that_cannot_be_sent() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            for bad in (("UPPER", "x"), ("a b", "x"), ("text", "ü"), ("grpc-own", "x")):
                with pytest.raises(ValueError, match=r"metadata|printable"):
                    unary(channel, metadata=(bad,))
            with pytest.raises(grpc.aio.UsageError):
                unary(channel, credentials=grpc.access_token_call_credentials("x"))
            with pytest.raises(NotImplementedError):
                channel.stream_unary("/x/y")(iter([]))
            with pytest.raises(NotImplementedError):
                channel.stream_stream("/x/y")(iter([]))
        with pytest.raises(grpc.aio.UsageError):
            unary(channel)

    run(test)


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_a_deadline_that_has_passed(timeout: float) -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            assert (await failed(unary(channel, timeout=timeout)))[0] is Status.DEADLINE_EXCEEDED
            assert not net.tried

    run(test)
