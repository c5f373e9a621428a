"""However a stream, a connection or a server ends: nothing of it is left, and nothing waits for ever."""

import asyncio
import gc
import weakref
from typing import Any

import grpc
import grpc.aio
import pytest

from stoker_common import wire
from stoker_common.http2.frames import DATA, END_STREAM, head, message_prefix
from stoker_common.http2.limits import Limits
from stoker_common.http2.server import Http2Server
from tests.unit.stoker_common.http2.kit import Client, Handlers, Transport, run, served, settle

pytestmark = pytest.mark.unit

INTERNAL = 13
EXHAUSTED = 8


def serving(handler: "grpc.RpcMethodHandler[Any, Any]", limits: Limits | None = None) -> Http2Server:
    """A server of one method."""
    server = Http2Server(limits)
    server.add_generic_rpc_handlers((wire.service("test.Service", {"Do": handler}),))
    return server


def test_a_call_that_the_server_cuts_off_cancels_its_handler() -> None:
    """A message that is too long, while the handler waits for one."""

    async def test() -> None:
        cancelled: list[bool] = []

        async def handle(_: object, context: Any) -> None:
            try:
                await context.read()
            except asyncio.CancelledError:
                cancelled.append(context.cancelled())
                raise

        server = serving(grpc.stream_stream_rpc_method_handler(handle), Limits(request_bytes=100))
        client = Client(server)
        stream = client.open("Do", end=False)
        await client.hear()
        client.data(stream, message_prefix(101))
        await client.hear()
        assert client.status(stream) == EXHAUSTED
        assert cancelled == [True]
        assert not client.connection.streams
        await asyncio.wait_for(server.stop(None), 5.0)

    run(test)


def test_a_handler_that_reads_after_its_call_was_cut_off_finds_its_end() -> None:
    async def test() -> None:
        read: list[object] = []

        async def handle(_: object, context: Any) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                read.append(await context.read())

        client = Client(serving(grpc.stream_stream_rpc_method_handler(handle)))
        client.open("Do", end=False, metadata=(("grpc-timeout", "1S"),))
        await asyncio.sleep(1.1)
        await client.hear()
        assert read == [grpc.aio.EOF]
        assert not client.connection.streams

    run(test)


def test_messages_before_one_that_is_refused_are_not_counted_twice() -> None:
    """Or the bound on what waits unread is none."""

    async def test() -> None:
        limits = Limits(request_bytes=10_000, unread_bytes=20_000)
        client = Client(served(Handlers(), limits))
        await client.hear()
        for _ in range(10):
            stream = client.open("Stay", end=False)
            client.data(stream, message_prefix(5_000) + bytes(5_000) + message_prefix(10_001))
            await client.hear()
            assert client.status(stream) == EXHAUSTED
        held = [client.open("Stay", end=False) for _ in range(3)]
        for stream in held:
            client.data(stream, message_prefix(9_000) + bytes(9_000))
        await client.hear()
        assert client.status(held[-1]) == EXHAUSTED

    run(test)


def test_a_request_that_ends_within_a_message_is_an_error() -> None:
    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers))
        stream = client.open("Collect", end=False)
        client.data(stream, message_prefix(1) + b"a" + message_prefix(10) + b"half", end=True)
        await client.hear()
        assert client.status(stream) == INTERNAL

    run(test)


@pytest.mark.parametrize("how", ["its own fault", "the server's end"])
def test_a_closed_connection_whose_client_reads_nothing_is_not_kept(how: str) -> None:
    async def test() -> None:
        limits = Limits()
        server = served(Handlers(), limits)
        client = Client(server)
        client.transport.stuck = True
        await client.hear()
        if how == "its own fault":
            client.frames(head(1, DATA, END_STREAM, 99) + b"x")
        else:
            client.connection.leave()
            await asyncio.sleep(limits.goaway_s + 0.1)
        assert client.transport.closed
        await asyncio.sleep(limits.linger_s + 0.1)
        assert client.transport.lost

    run(test)


def test_nothing_is_left_of_calls_that_are_over() -> None:
    """Not even until the garbage is collected, or a timer has run out."""

    async def test() -> None:
        contexts: list[weakref.ref[Any]] = []

        async def handle(request: bytes, context: Any) -> bytes:
            contexts.append(weakref.ref(context))
            return request

        client = Client(serving(grpc.unary_unary_rpc_method_handler(handle)), window=0)
        await client.hear()
        gc.collect()
        gc.disable()
        try:
            # Answered, not taken, given up.
            client.cancel(client.open("Do", b"a", metadata=(("grpc-timeout", "1H"),)))
            stream = client.open("Do", b"a")
            await client.hear()
            assert len(client.connection.streams) == 1
            client.cancel(stream)
            # Answered and taken.
            client.h2.update_settings({4: 1000})
            client.open("Do", b"a", metadata=(("grpc-timeout", "1H"),))
            await client.hear()
            assert not client.connection.streams
            assert len(contexts) == 2
            assert [each() for each in contexts] == [None, None]
        finally:
            gc.enable()

    run(test)


def test_a_done_callback_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        called: list[object] = []

        async def handle(request: bytes, context: Any) -> bytes:
            context.add_done_callback(lambda _: 1 / 0)
            context.add_done_callback(called.append)
            return request

        server = serving(grpc.unary_unary_rpc_method_handler(handle))
        client = Client(server)
        stream = client.open("Do", b"a")
        await client.hear()
        assert client.status(stream) == 0
        assert len(called) == 1
        assert "done callback" in caplog.text
        assert not client.connection.streams
        await asyncio.wait_for(server.stop(None), 5.0)

    run(test)


def test_a_server_that_ends_while_a_connection_is_accepted() -> None:
    """asyncio makes the protocol a turn before it is given its transport."""

    async def test() -> None:
        server = served(Handlers())
        made = server.protocol(asyncio.get_running_loop())
        stopping = asyncio.create_task(server.stop(None))
        await settle()
        transport = Transport(made)
        made.connection_made(transport)
        await asyncio.wait_for(stopping, 5.0)
        await settle()
        assert transport.lost

    run(test)


@pytest.mark.parametrize("size", [16_000, 16_384, 40_000])
def test_a_status_that_is_longer_than_a_frame(size: int) -> None:
    """As one frame it would end the connection, and all other calls."""

    async def test() -> None:
        async def handle(request: bytes, context: Any) -> None:
            await context.send_initial_metadata((("x-first", "x" * size),))
            await context.abort(grpc.StatusCode.NOT_FOUND, "y" * size)

        client = Client(serving(grpc.unary_unary_rpc_method_handler(handle)))
        client.h2.local_settings.max_header_list_size = 100_000
        client.h2.decoder.max_header_list_size = 100_000
        stream = client.open("Do", b"a")
        await client.hear()
        assert client.headers[stream]["x-first"] == "x" * size
        assert client.trailers[stream]["grpc-message"] == "y" * size
        assert stream in client.ended

    run(test)


def test_many_calls_that_end_while_their_client_does_not_read_harm_no_other() -> None:
    """A server that refuses all that comes to a client whose socket is full."""

    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers, Limits(control_bytes=10_000)))
        stays = client.open("Hold", b"a")
        await client.hear()
        client.connection.pause_writing()
        streams = [client.open("Nothing", b"a") for _ in range(300)]
        await settle()
        assert not client.transport.closed
        client.connection.resume_writing()
        await client.hear()
        assert {client.status(stream) for stream in streams} == {12}
        assert set(client.connection.streams) == {stays}

    run(test)


def test_ends_that_wait_are_sent_when_the_connection_is_closed() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        await client.hear()
        client.connection.pause_writing()
        stream = client.open("Nothing", b"a")
        await settle()
        client.connection.close()
        await client.hear()
        assert client.status(stream) == 12

    run(test)


def test_a_call_that_is_cut_off_is_over_though_its_client_does_not_read() -> None:
    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers, Limits(request_bytes=100, unread_bytes=200)))
        streams = [client.open("Stay", end=False) for _ in range(20)]
        await client.hear()
        client.connection.pause_writing()
        for stream in streams:
            client.data(stream, message_prefix(90) + bytes(90))
        await settle()
        assert len(client.connection.streams) == 1
        client.connection.resume_writing()
        await client.hear()
        assert {client.status(stream) for stream in streams[1:]} == {EXHAUSTED}

    run(test)


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_that_leaves_closes_when_the_client_has_read_the_last_answer(answers: bool) -> None:
    """A proxy that meets the connection's end behind frames that it has not read may lose them: haproxy 2.6 did."""

    async def test() -> None:
        handlers = Handlers()
        server = served(handlers)
        client = Client(server)
        stream = client.open("Stay", end=True)
        await client.hear()
        stopping = asyncio.ensure_future(server.stop(100.0))
        await client.hear()
        assert len(client.goaways) == 2
        handlers.go.set()
        await settle()
        assert client.transport.written and not client.transport.closed
        if answers:
            await client.hear()
            assert client.status(stream) == 0
        else:
            await asyncio.sleep(Limits().goaway_s + 0.1)
        assert client.transport.closed
        await asyncio.wait_for(stopping, 1)

    run(test)
