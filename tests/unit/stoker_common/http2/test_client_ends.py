"""How a channel's connections are made and end: who is tried, how often, and what becomes of the calls."""

import asyncio

import grpc
import pytest
from hpack import Encoder

from stoker_common.http2.frames import (
    HEADERS,
    LARGEST_STREAM_ID,
    PUSH_PROMISE,
    SETTINGS,
    ErrorCode,
    goaway,
    head,
    ping,
    settings,
    window_update,
)
from stoker_common.http2.limits import Limits, client_limits
from tests.unit.stoker_common.http2.kit import run, settle
from tests.unit.stoker_common.http2.peer_kit import CONCURRENT, Network, both, failed, pings, streamed, unary

pytestmark = pytest.mark.unit

Status, State = grpc.StatusCode, grpc.ChannelConnectivity


def test_a_server_that_leaves_serves_what_it_has_and_the_next_call_finds_another() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            served, refused = unary(channel), unary(channel)
            first = await net.peer()
            first.frames(goaway(LARGEST_STREAM_ID, ErrorCode.NO_ERROR) + ping(b"12345678"))
            assert channel.get_state() is State.IDLE
            first.frames(goaway(1, ErrorCode.NO_ERROR, "bye"))
            assert await failed(refused) == (Status.UNAVAILABLE, "the server takes no more calls, GOAWAY 0 bye")
            first.answer(1, b"a")
            assert await served == b"a"
            await settle()
            assert first.transport.lost
            later = unary(channel)
            second = await net.peer()
            assert second is not first
            second.answer(1, b"b")
            assert await later == b"b"

    run(test)


def test_a_connection_that_is_lost_ends_its_calls() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            calls = [unary(channel), streamed(channel), both(channel)]
            await calls[2].write(b"a")
            peer = await net.peer()
            peer.begin(3)
            peer.say(3, b"said before")
            peer.transport.abort()
            await settle()
            assert channel.get_state() is State.IDLE
            assert (await failed(calls[0]))[0] is Status.UNAVAILABLE
            assert await calls[1].read() == b"said before"
            assert (await failed(calls[1].read()))[0] is Status.UNAVAILABLE
            assert (await failed(calls[2].read()))[0] is Status.UNAVAILABLE

    run(test)


def test_an_address_is_tried_again_later_and_later() -> None:
    async def test() -> None:
        net = Network()
        net.refuses = lambda address: True
        async with net.channel() as channel:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            code, text = await failed(unary(channel))
            assert code is Status.UNAVAILABLE and "refused" in text
            assert len(net.tried) == 1
            assert channel.get_state() is State.TRANSIENT_FAILURE
            # A call that does not wait is told at once.
            assert (await failed(unary(channel)))[0] is Status.UNAVAILABLE and loop.time() == began_s
            patient = unary(channel, wait_for_ready=True)
            await asyncio.sleep(10)
            assert 11 <= len(net.tried) <= 24
            net.refuses = lambda address: False
            ready = asyncio.ensure_future(channel.channel_ready())
            await asyncio.sleep(1.1)
            await ready
            peer = await net.peer()
            peer.answer(1, b"a")
            assert await patient == b"a"

    run(test)


def test_the_second_address_serves_where_the_first_does_not() -> None:
    async def test() -> None:
        net = Network()
        net.refuses = lambda address: len(net.tried) == 1
        async with net.channel() as channel:
            channel._dialer._target = TwoAddresses()  # type: ignore[assignment]
            call = unary(channel)
            peer = await net.peer()
            peer.answer(1, b"a")
            assert await call == b"a" and net.tried == [("::1", 5), ("127.0.0.1", 5)]

    run(test)


class TwoAddresses:
    """A name that has two."""

    authority = "two:5"

    async def addresses(self, _: float) -> list[tuple[str, int]]:
        return [("::1", 5), ("127.0.0.1", 5)]


def test_who_never_speaks_is_no_server() -> None:
    async def test() -> None:
        net = Network()
        net.silent = True
        async with net.channel() as channel:
            call = unary(channel)
            await asyncio.sleep(client_limits().connect_s - 0.01)
            assert not call.done()
            await asyncio.sleep(0.02)
            assert (await failed(call))[0] is Status.UNAVAILABLE
            assert net.peers[0].transport.lost

    run(test)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", goaway(0, ErrorCode.NO_ERROR), bytes(100)])
def test_who_speaks_something_else_is_no_server(said: bytes) -> None:
    async def test() -> None:
        net = Network()
        net.silent = True
        async with net.channel() as channel:
            call = unary(channel)
            await settle()
            net.peers[0].frames(said)
            assert (await failed(call))[0] is Status.UNAVAILABLE
            await settle()
            assert net.peers[0].transport.lost

    run(test)


FORBIDDEN = {
    "a push": head(8, PUSH_PROMISE, 4, 1) + bytes(8),
    "a stream of its own": head(1, HEADERS, 4, 2) + b"\x88",
    "headers of a stream that was not opened": head(1, HEADERS, 4, 99) + b"\x88",
    "data on one": head(1, 0, 0, 99) + b"x",
    "a reset of one": head(4, 3, 0, 99) + bytes(4),
    "a window of one": window_update(99, 1),
    "a window by nothing": window_update(0, 0),
    "a window too large": window_update(0, (1 << 31) - 1),
    "a long frame": head(16_385, 0, 0, 1),
    "short settings": head(5, SETTINGS, 0, 0) + bytes(5),
    "a block broken off": head(1, HEADERS, 0, 1) + b"\x88" + ping(bytes(8)),
    "a block that cannot be decoded": head(1, HEADERS, 4, 1) + b"\xff",
    "an endless block": head(1, HEADERS, 0, 1) + b"\x88" + (head(0, 9, 0, 1)) * 20,
    "pings": ping(bytes(8)) * 20_000,
    "settings": settings({}) * 200,
    "empty data": head(0, 0, 0, 1) * 20_000,
    "unknown frames": head(0, 99, 0, 0) * 20_000,
    "promises": (head(1, HEADERS, 4, 1) + b"\x08\x03103") * 20_000,
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_a_server_may_not_do_ends_the_connection(what: str) -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            call = unary(channel)
            peer = await net.peer()
            if what == "empty data":
                peer.begin(1)
            peer.frames(FORBIDDEN[what])
            assert (await failed(call))[0] in (Status.UNAVAILABLE, Status.INTERNAL)
            await settle()
            assert peer.transport.lost
            other = unary(channel)
            again = await net.peer()
            again.answer(1, b"b")
            assert await other == b"b" and again is not peer

    run(test)


def test_a_header_bomb() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            call = unary(channel)
            peer = await net.peer()
            block = Encoder().encode([("x", "y" * 4000)]) + b"\xbe" * 100
            peer.frames(head(len(block), HEADERS, 4, 1) + block)
            assert (await failed(call))[0] is Status.UNAVAILABLE
            await settle()
            assert peer.transport.lost

    run(test)


@pytest.mark.parametrize("always", [False, True])
def test_a_silent_server_is_asked_and_given_up(always: bool) -> None:
    async def test() -> None:
        net = Network()
        async with net.channel(client_limits(ping_when_idle=always)) as channel:
            await channel.channel_ready()
            peer = await net.peer()
            await asyncio.sleep(1.2)
            await peer.hear()  # and so answers
            assert (pings(peer) > 0) == always
            call = streamed(channel)
            await peer.hear()
            for _ in range(20):
                await asyncio.sleep(0.4)
                await peer.hear()
            assert pings(peer) >= 3 and not call.done()
            began_s = asyncio.get_running_loop().time()
            assert (await failed(call.read()))[0] is Status.UNAVAILABLE
            assert asyncio.get_running_loop().time() - began_s <= 2.6

    run(test)


def test_closing_cancels_what_runs_and_what_waits() -> None:
    async def test() -> None:
        net = Network()
        channel = net.channel()
        runs = streamed(channel)
        peer = await net.peer()
        await channel.close()
        await channel.close()
        with pytest.raises(asyncio.CancelledError):
            await runs.read()
        assert peer.transport.lost and channel.get_state() is State.SHUTDOWN
        net.silent = True
        channel = net.channel()
        waits = unary(channel)
        await settle()
        await channel.close()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert net.peers[-1].transport.lost
        with pytest.raises(grpc.aio.UsageError):
            unary(channel)

    run(test)


def test_closing_with_grace_lets_calls_end_that_have_yet_to_begin() -> None:
    async def test() -> None:
        net = Network()
        channel = net.channel(Limits())
        call, held = unary(channel), streamed(channel)
        closing = asyncio.ensure_future(channel.close(5.0))
        peer = await net.peer()
        peer.answer(1, b"a")
        assert await call == b"a"
        await asyncio.sleep(4.9)
        assert not closing.done() and not held.done()
        await asyncio.sleep(0.2)
        assert closing.done() and held.cancelled()

    run(test)


def test_a_peer_that_takes_nothing_holds_up_what_would_begin() -> None:
    async def test() -> None:
        net = Network({CONCURRENT: 20_000})
        async with net.channel() as channel:
            await channel.channel_ready()
            peer = await net.peer()
            peer.connection.pause_writing()
            calls = [unary(channel, timeout=60) for _ in range(10_000)]
            assert not peer.connection.streams
            peer.connection.resume_writing()
            assert len(peer.connection.streams) == 10_000
            for call in calls:
                call.cancel()
            await settle()
            assert not peer.connection.streams

    run(test)


def test_numbers_of_streams_run_out() -> None:
    async def test() -> None:
        net = Network()
        async with net.channel() as channel:
            await channel.channel_ready()
            first = await net.peer()
            first.connection._next_id = LARGEST_STREAM_ID
            last, later = streamed(channel), streamed(channel)
            await settle()
            assert len(net.peers) == 2
            assert set(first.connection.streams) == {LARGEST_STREAM_ID}
            second = await net.peer()
            assert set(second.asked) == {1}
            last.cancel()
            later.cancel()
            await settle()
            assert first.transport.lost and not second.transport.lost

    run(test)
