"""What a gRPC server promises its services and its clients, over grpc's own and over ours; the clients are grpc's."""

import asyncio
import gc
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from stoker.v1 import inference_pb2, inference_pb2_grpc
from stoker_common.channel import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, Http2, client_options
from stoker_common.health import Health
from stoker_common.servers import reflect, server
from tests.contract.echo import Service, descriptors, parts, refused, twice, up
from tests.fakes.until import until

pytestmark = pytest.mark.contract

kinds = pytest.mark.parametrize("kind", ["grpc", "stoker"])


@kinds
async def test_all_four_kinds_of_method(kind: Http2) -> None:
    async with up(kind) as it:

        async def requests() -> AsyncIterator[bytes]:
            for number in range(5):
                yield b"%d" % number

        counted = [b"0", b"1", b"2", b"3", b"4"]
        assert await it.unary("Twice")(b"ab") == b"abab"
        assert await it.unary("Twice")(b"") == b""
        assert await parts(it.stream("Count")(b"5")) == counted
        assert await parts(it.stream("Yield")(b"5")) == counted
        assert await parts(it.stream("Count")(b"0")) == []
        total: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = it.channel.stream_unary("/test.Service/Sum")
        assert await total(requests()) == b"10"
        assert await parts(it.both("Echo")(requests())) == counted
        assert await parts(it.both("Read")(requests())) == counted


@kinds
async def test_messages_go_both_ways_as_they_are_said(kind: Http2) -> None:
    async with up(kind) as it:
        call = it.both("Read")()
        for size in (0, 1, 100_000, 3):
            await call.write(b"x" * size)
            assert await call.read() == b"x" * size
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


@kinds
@pytest.mark.parametrize("size", [16_379, 16_384, 65_536, 1 << 20, 15 << 20])
async def test_large_messages_go_both_ways(kind: Http2, size: int) -> None:
    async with up(kind) as it:
        assert await it.unary("Large")(b"%d" % size) == bytes(size)
        sent = os.urandom(1024) * (size // 2 // 1024)
        assert await it.unary("Twice")(sent) == sent * 2


@kinds
async def test_a_message_that_is_too_large_is_refused_and_others_go_on(kind: Http2) -> None:
    async with up(kind) as it:
        error = await refused(it.unary("Twice")(bytes(MAX_REQUEST_BYTES + 1)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(MAX_REQUEST_BYTES) in (error.details() or "")
        error = await refused(it.unary("Large")(b"%d" % (MAX_RESPONSE_BYTES + 1)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await it.unary("Twice")(b"a") == b"aa"


@kinds
async def test_metadata_goes_both_ways(kind: Http2) -> None:
    async with up(kind) as it:
        metadata = (("x-text", "a b"), ("x-data-bin", b"\0\1\xff"), ("x-twice", "1"), ("x-twice", "2"))
        call = it.unary("Context")(b"", metadata=grpc.aio.Metadata(*metadata))
        assert (await call).decode() == r"x-data-bin=b'\x00\x01\xff' x-text='a b' x-twice='1' x-twice='2'"
        assert {("first", "1"), ("first-bin", b"\0\xff")} <= set(await call.initial_metadata())
        assert {("last", "2"), ("last-bin", b"\xff\0")} <= set(await call.trailing_metadata())
        assert it.service.peers[0].startswith("ipv4:127.0.0.1:")
        await until(lambda: it.service.done == 1)


@kinds
async def test_statuses(kind: Http2) -> None:
    async with up(kind) as it:
        error = await refused(it.unary("Abort")(b""))
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "none of it, 100 % sure: ü\n")
        assert {("why", "so"), ("b-bin", b"\1")} <= set(error.trailing_metadata())
        assert "before" not in error.trailing_metadata()
        error = await refused(it.unary("AbortAsSet")(b""))
        assert (error.details(), error.trailing_metadata()["before"]) == ("as it was set", "1")
        error = await refused(it.unary("Code")(b""))
        assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "lost")
        assert (await refused(it.unary("Fail")(b""))).code() is grpc.StatusCode.UNKNOWN
        assert (await refused(it.unary("Nothing")(b""))).code() is grpc.StatusCode.UNIMPLEMENTED
        call = it.stream("Breaks")(b"")
        assert await call.read() == b"one"
        error = await refused(call.read())
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "gone")


@kinds
async def test_a_deadline_ends_the_call_and_its_handler(kind: Http2) -> None:
    async with up(kind) as it:
        # Long enough that a busy machine begins it before it is over.
        error = await refused(it.unary("Wait")(b"", timeout=1.0))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: it.service.cancelled == 1 and not it.service.running)
        await until(lambda: it.service.done == 1)
        # gRPC's client says up to a hundredth more than it was told.
        assert 0 < (it.service.remaining_s[0] or 0) <= 1.01


@kinds
async def test_without_a_deadline_there_is_no_time_remaining(kind: Http2) -> None:
    async with up(kind) as it:
        await it.unary("Context")(b"")
        assert it.service.remaining_s == [None]


@kinds
@pytest.mark.parametrize("way", ["cancel", "close"])
async def test_a_client_that_goes_cancels_the_handler(kind: Http2, way: str) -> None:
    async with up(kind) as it:
        async with grpc.aio.insecure_channel(it.address) as channel:
            hold: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/test.Service/Hold")
            calls = [hold(b"") for _ in range(20)]
            for call in calls:
                assert await call.read() == b"begun"
            assert it.service.running == 20
            if way == "cancel":
                for call in calls:
                    call.cancel()
                await until(lambda: it.service.cancelled == 20)
        await until(lambda: it.service.cancelled == 20 and not it.service.running)


@kinds
async def test_a_client_that_does_not_read_stops_its_handler_alone(kind: Http2) -> None:
    async with up(kind) as it:
        slow = it.stream("Flood")(b"1000")
        assert await slow.read() == bytes(1000)
        written = -1

        def stands() -> bool:
            nonlocal written
            before, written = written, it.service.written
            return before == written

        await until(stands)
        assert it.service.written < 10_000
        assert len(await parts(it.stream("Count")(b"2000"))) == 2000
        slow.cancel()
        await until(lambda: not it.service.running)


@kinds
@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_read(kind: Http2, compression: grpc.Compression) -> None:
    async with up(kind) as it:
        assert await it.unary("Twice")(b"a" * 10_000, compression=compression) == b"a" * 20_000
        for _ in range(2):  # the connection goes on
            sent = os.urandom(1024) * 4096
            assert await it.unary("Twice")(sent, compression=compression) == sent * 2
            error = await refused(it.unary("Twice")(bytes(MAX_REQUEST_BYTES + 1), compression=compression))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@kinds
@pytest.mark.parametrize("method", ["Read", "Echo"])
async def test_a_compressed_stream_stays_in_order_and_ends_at_what_is_too_large(kind: Http2, method: str) -> None:
    sizes = (3, 1 << 20, 0, 300_000, 5)
    async with up(kind) as it:
        call = it.both(method)(compression=grpc.Compression.Gzip)
        for size in sizes:
            await call.write(b"x" * size)
        assert [await call.read() for _ in sizes] == [b"x" * size for size in sizes]
        await call.write(bytes(MAX_REQUEST_BYTES + 1))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: not it.service.running)


@kinds
async def test_synchronous_clients_are_served(kind: Http2) -> None:
    async with up(kind) as it:

        def ask() -> list[bytes]:
            with grpc.insecure_channel(it.address) as channel:
                once: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test.Service/Twice")
                count: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/test.Service/Count")
                return [once(b"a", timeout=5), *count(b"3", timeout=5)]

        assert await asyncio.to_thread(ask) == [b"aa", b"0", b"1", b"2"]


@kinds
async def test_generated_services_health_and_reflection(kind: Http2) -> None:
    class Inference(inference_pb2_grpc.InferenceServiceServicer):
        async def Generate(
            self, request: inference_pb2.GenerateRequest, context: Any
        ) -> inference_pb2.GenerateResponse:
            return inference_pb2.GenerateResponse(started=inference_pb2.Started(server=request.generation.model))

        async def GenerateStream(
            self, request: inference_pb2.GenerateStreamRequest, context: Any
        ) -> AsyncIterator[inference_pb2.GenerateStreamResponse]:
            yield inference_pb2.GenerateStreamResponse()

    made, health = server(kind), Health(["stoker.v1.InferenceService"])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Inference(), made)
    made.add_generic_rpc_handlers((health.handlers(),))
    reflect(made, ("stoker.v1.InferenceService",))
    port = made.add_insecure_port("127.0.0.1:0")
    await made.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = inference_pb2.GenerateRequest()
            request.generation.model = "m"
            assert (await inference_pb2_grpc.InferenceServiceStub(channel).Generate(request)).started.server == "m"
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            health.set(serving=True)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
            names = {each.name for each in (await call.read()).list_services_response.service}
            assert names == {"stoker.v1.InferenceService", "grpc.reflection.v1alpha.ServerReflection"}
            call.cancel()
    finally:
        await made.stop(None)


@kinds
async def test_a_graceful_end_lets_calls_finish_and_takes_no_new_ones(kind: Http2) -> None:
    async with up(kind) as it:
        call = it.both("Read")()
        await call.write(b"a")
        assert await call.read() == b"a"
        stopping = asyncio.create_task(it.server.stop(10.0))

        async def turned_away() -> grpc.aio.AioRpcError:
            async with grpc.aio.insecure_channel(it.address) as channel:
                return await refused(twice(channel)(b"a", timeout=5))

        assert (await turned_away()).code() is grpc.StatusCode.UNAVAILABLE
        await call.write(b"b")
        assert await call.read() == b"b"
        assert not stopping.done()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        await asyncio.wait_for(stopping, 5)
        assert not await it.server.wait_for_termination(5)


@kinds
async def test_the_end_of_the_grace_cancels_what_runs_and_waits_for_it(kind: Http2) -> None:
    async with up(kind) as it:
        call = it.stream("Hold")(b"")
        assert await call.read() == b"begun"
        await asyncio.wait_for(it.server.stop(0.2), 5)
        assert it.service.cancelled == 1 and not it.service.running
        assert (await refused(call.read())).code() is grpc.StatusCode.UNAVAILABLE


@kinds
async def test_a_second_stop_shortens_the_first(kind: Http2) -> None:
    async with up(kind) as it:
        call = it.stream("Hold")(b"")
        assert await call.read() == b"begun"
        first = asyncio.create_task(it.server.stop(60.0))
        await asyncio.sleep(0)
        await asyncio.wait_for(it.server.stop(None), 5)
        await asyncio.wait_for(first, 5)
        assert not it.service.running
        call.cancel()


@kinds
async def test_a_taken_port_is_an_error_and_a_shared_one_is_not(kind: Http2) -> None:
    first, second = server(kind), server(kind)
    port = first.add_insecure_port("127.0.0.1:0")
    with pytest.raises(RuntimeError, match=str(port)):
        second.add_insecure_port(f"127.0.0.1:{port}")
    shared = [server(kind, share_port=True) for _ in range(2)]
    port = shared[0].add_insecure_port("127.0.0.1:0")
    assert shared[1].add_insecure_port(f"127.0.0.1:{port}") == port
    for each in (first, second, *shared):
        await each.stop(None)


@kinds
async def test_a_port_is_free_again_at_once(kind: Http2) -> None:
    port = 0
    for _ in range(3):
        made = server(kind)
        made.add_generic_rpc_handlers((Service().handler(),))
        port = made.add_insecure_port(f"127.0.0.1:{port}")
        await made.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await twice(channel)(b"a", timeout=5) == b"aa"
            await made.stop(1.0)


@kinds
@pytest.mark.parametrize("host", ["[::]", "0.0.0.0", "localhost"])
async def test_addresses_as_grpc_writes_them(kind: Http2, host: str) -> None:
    made = server(kind)
    made.add_generic_rpc_handlers((Service().handler(),))
    port = made.add_insecure_port(f"{host}:0")
    await made.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await twice(channel)(b"a", timeout=5) == b"aa"
    finally:
        await made.stop(None)


@kinds
async def test_streams_opened_and_cancelled_leave_nothing(kind: Http2) -> None:
    async with up(kind, options=client_options()) as it:

        async def one() -> None:
            call = it.stream("Hold")(b"x" * 100)
            assert await call.read() == b"begun"
            call.cancel()

        async def many(count: int) -> None:
            for _ in range(count // 100):
                await asyncio.gather(*(one() for _ in range(100)))
            await until(lambda: not it.service.running)

        await many(200)
        tasks, open_now = len(asyncio.all_tasks()), descriptors()
        await many(2_000)
        gc.collect()
        assert it.service.cancelled == 2_200
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert descriptors() <= open_now
        assert threading.active_count() < 20


@kinds
async def test_what_is_no_http2_is_hung_up_on(kind: Http2) -> None:
    async with up(kind) as it:
        reader, writer = await asyncio.open_connection(*it.address.split(":"))
        with closing(writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
            await asyncio.wait_for(reader.read(), 5)
        assert await it.unary("Twice")(b"a") == b"aa"


@kinds
async def test_a_connection_that_is_cut_cancels_its_calls(kind: Http2) -> None:
    async with up(kind) as it:
        call = it.stream("Hold")(b"")
        assert await call.read() == b"begun"
        with closing(socket.socket()) as silent:
            silent.connect(("127.0.0.1", int(it.address.split(":")[1])))
            assert it.service.running == 1
        await it.channel.close()
        await until(lambda: it.service.cancelled == 1)
