"""What all clients together may not do: connections, and what waits of them, in both directions."""

import logging

import pytest

from stoker_common.http2.bounds import LINE_EVERY_S, Bounds
from stoker_common.http2.frames import ErrorCode, message_prefix, ping
from stoker_common.http2.limits import Limits
from stoker_common.http2.server import Http2Server
from tests.fakes.clock import FakeClock
from tests.unit.stoker_common.http2.kit import Client, Handlers, run, served, settle

pytestmark = pytest.mark.unit

EXHAUSTED = 8
WIDE = (1 << 31) - 1


def nothing_is_held(server: Http2Server) -> bool:
    """Whether all that was counted was taken off again."""
    bounds = server.bounds
    return all(pool.free_bytes == pool.most_bytes for pool in bounds.pools.values()) and not bounds.streams


async def gone(server: Http2Server, *clients: Client) -> None:
    """They hang up, and leave nothing."""
    for client in clients:
        client.transport.abort()
    await settle()
    assert nothing_is_held(server)


def test_connections_beyond_the_limit_are_closed_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        server = served(Handlers(), Limits(connections=2))
        first, second = Client(server), Client(server)
        for _ in range(3):
            third = Client(server, greet=False)
            assert third.transport.closed
            await third.hear()
            ((_, code, why),) = third.goaways
            assert code is ErrorCode.ENHANCE_YOUR_CALM and why
        assert server.bounds.refused == {"connections": 3}
        first.transport.abort()
        await settle()
        for client in (second, Client(server)):
            stream = client.open("Twice", b"a")
            await client.hear()
            assert client.message(stream) == b"aa"
        await server.stop(None)

    with caplog.at_level(logging.WARNING):
        run(test)
    assert [record.limit for record in caplog.records if hasattr(record, "limit")] == ["connections"]


def test_refusals_are_told_of_seldom_and_all_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    bounds = Bounds(Limits(connections=0), clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            assert not bounds.admits("ipv4:1")
        bounds.refuse("unsent", "ipv4:2", "many")
        clock.advance(LINE_EVERY_S)
        assert not bounds.admits("ipv4:3")
    told = [(each.__dict__["limit"], each.__dict__["refused"]) for each in caplog.records]
    assert told == [("connections", 1), ("unsent", 1), ("connections", 10)]
    assert caplog.records[-1].__dict__["refused_ever"] == 11 == bounds.refused["connections"]


def test_faults_are_told_of_seldom_by_code_and_all_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    bounds = Bounds(Limits(), clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            bounds.fault("PROTOCOL_ERROR", "192.0.2.1:9", "it broke a rule")
        bounds.fault("ENHANCE_YOUR_CALM", "192.0.2.2:9", "too many PINGs")
        clock.advance(LINE_EVERY_S)
        bounds.fault("PROTOCOL_ERROR", "192.0.2.3:9", "it broke a rule")
    assert bounds.faults == {"PROTOCOL_ERROR": 5, "ENHANCE_YOUR_CALM": 1}
    told = [(getattr(record, "code", ""), getattr(record, "closed", 0)) for record in caplog.records]
    assert told == [("PROTOCOL_ERROR", 1), ("ENHANCE_YOUR_CALM", 1), ("PROTOCOL_ERROR", 4)]


def test_unread_requests_of_all_connections_are_bounded_and_a_small_one_finds_room() -> None:
    async def test() -> None:
        handlers = Handlers()
        server = served(handlers, Limits(server_unread_bytes=100_000))
        hogs = [Client(server) for _ in range(4)]
        refused = 0
        for hog in hogs:
            await hog.hear()
            streams = [hog.open("Stay", end=False) for _ in range(10)]
            for stream in streams:
                hog.say(stream, bytes(10_000))
            await hog.hear()
            refused += sum(stream in hog.trailers or stream in hog.headers for stream in streams)
            assert all(hog.status(stream) == EXHAUSTED for stream in streams if stream in hog.headers)
            assert server.bounds.unread.free_bytes >= 0
        assert refused == server.bounds.refused["unread"] > 20
        good = Client(server)
        stream = good.open("Twice", b"a" * 100)
        await good.hear()
        assert good.message(stream) == b"aa" * 100
        await gone(server, *hogs, good)

    run(test)


def test_answers_of_a_connection_that_nobody_takes_are_bounded() -> None:
    async def test() -> None:
        handlers = Handlers()
        server = served(handlers, Limits(unsent_bytes=10_000))
        slow = Client(server, window=0)
        await slow.hear()
        streams = [slow.open("Send", b"1 3000") for _ in range(5)]
        await slow.hear()
        refused = [stream for stream in streams if stream in slow.ended]
        assert len(refused) == 2 == server.bounds.refused["unsent"]
        assert {slow.status(stream) for stream in refused} == {EXHAUSTED}
        for stream in set(streams) - set(refused):
            slow.h2.increment_flow_control_window(4000, stream)
        slow.frames(slow.h2.data_to_send())
        await slow.hear()
        assert [slow.status(stream) for stream in streams].count(0) == 3
        assert nothing_is_held(server)

    run(test)


def test_handlers_wait_before_answers_are_refused() -> None:
    """Many streams that send little, each below what it may have waiting."""

    async def test() -> None:
        handlers = Handlers()
        server = served(handlers, Limits(unsent_bytes=100_000))
        slow = Client(server, window=0)
        await slow.hear()
        streams = [slow.open("Send", b"40 1000") for _ in range(5)]
        await slow.hear()
        assert handlers.running == 5 and not server.bounds.refused
        for stream in streams:
            slow.h2.increment_flow_control_window(100_000, stream)
        slow.frames(slow.h2.data_to_send())
        await slow.hear()
        assert {slow.status(stream) for stream in streams} == {0}
        assert {len(slow.messages[stream]) for stream in streams} == {40 * 1005}
        assert nothing_is_held(server)

    run(test)


def test_answers_of_all_connections_that_nobody_takes_are_bounded() -> None:
    async def test() -> None:
        server = served(Handlers(), Limits(server_unsent_bytes=100_000))
        slow = [Client(server, window=0) for _ in range(5)]
        for client in slow:
            await client.hear()
            for _ in range(10):
                client.open("Send", b"1 8000")
            await client.hear()
            assert server.bounds.unsent.free_bytes >= 0
        assert server.bounds.refused["unsent"] > 20
        good = Client(server)
        await good.hear()
        stream = good.open("Send", b"10 1000")
        await good.hear()
        assert good.status(stream) == 0 and len(good.messages[stream]) == 10 * 1005
        await gone(server, *slow, good)

    run(test)


def test_what_full_sockets_hold_up_counts_and_who_fills_the_last_of_it_is_hung_up_on() -> None:
    async def test() -> None:
        server = served(Handlers(), Limits(server_unsent_bytes=100_000))
        clients = [Client(server, window=WIDE) for _ in range(6)]
        for client in clients:
            await client.hear()
            client.open("Send", b"3 10000")
            await settle()
            client.connection.pause_writing()
            await settle()
        closed = [client for client in clients if client.transport.closed]
        assert closed and len(closed) < len(clients) and server.bounds.refused["unsent"] == len(closed)
        assert server.bounds.unsent.free_bytes >= 0
        for client in clients:
            if client not in closed:
                client.connection.resume_writing()
                await client.hear()
        assert nothing_is_held(server)

    run(test)


def test_answers_to_pings_beside_full_sockets_count() -> None:
    async def test() -> None:
        server = served(Handlers(), Limits(server_unsent_bytes=20_000))
        for _ in range(3):
            client = Client(server)
            await client.hear()
            client.connection.pause_writing()
            client.frames(ping(b"12345678") * 1000)
            assert client.transport.closed
            await settle()
            assert nothing_is_held(server)
        assert server.bounds.refused == {"unsent": 3}

    run(test)


def test_the_metadata_of_all_connections_is_bounded() -> None:
    async def test() -> None:
        handlers = Handlers()
        server = served(handlers, Limits(server_metadata_bytes=20_000))
        clients = [Client(server) for _ in range(4)]
        refused = 0
        for client in clients:
            streams = [client.open("Hold", b"a", metadata=(("x-long", "x" * 3_000),)) for _ in range(5)]
            await client.hear()
            refused += sum(stream in client.headers and client.status(stream) == EXHAUSTED for stream in streams)
        assert refused == server.bounds.refused["metadata"] == 20 - handlers.running
        assert 0 <= server.bounds.metadata.free_bytes < 10_000
        await gone(server, *clients)

    run(test)


def test_a_message_of_half_comes_to_nothing_when_its_client_leaves() -> None:
    async def test() -> None:
        server = served(Handlers())
        client = Client(server)
        stream = client.open("Stay", end=False)
        client.data(stream, message_prefix(1000) + bytes(10))
        await client.hear()
        assert not nothing_is_held(server)
        await gone(server, client)

    run(test)


def test_compressed_messages_can_be_refused() -> None:
    async def test() -> None:
        client = Client(served(Handlers(), Limits(compressed=False)))
        refused = client.open("Twice", b"a", metadata=(("grpc-encoding", "gzip"),))
        served_as_ever = client.open("Twice", b"a", metadata=(("grpc-encoding", "identity"),))
        await client.hear()
        assert client.status(refused) == 12
        assert client.headers[refused]["grpc-accept-encoding"] == "identity"
        assert client.message(served_as_ever) == b"aa"

    run(test)
