"""What a channel promises its callers, whichever HTTP/2 is at either end: grpc's own, and ours."""

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stoker.v1 import inference_pb2, inference_pb2_grpc
from stoker_common.channel import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, Http2
from stoker_common.channels import channel
from stoker_common.health import Health
from stoker_common.servers import server
from tests.contract.echo import Service, Up, descriptors, parts, refused, up
from tests.fakes.until import until

pytestmark = pytest.mark.contract

channels = pytest.mark.parametrize("asks", ["grpc", "stoker"])
servers = pytest.mark.parametrize("serves", ["grpc", "stoker"])
State = grpc.ChannelConnectivity


@asynccontextmanager
async def both(serves: Http2, asks: Http2) -> AsyncIterator[Up]:
    async with up(serves, channel=lambda address: channel(asks, address, ping_when_idle=True)) as it:
        yield it


@asynccontextmanager
async def serving(serves: Http2, port: int = 0) -> AsyncIterator[int]:
    """A server, and its port."""
    made = server(serves)
    made.add_generic_rpc_handlers((Service().handler(),))
    port = made.add_insecure_port(f"127.0.0.1:{port}")
    await made.start()
    try:
        yield port
    finally:
        await made.stop(None)


def twice(made: grpc.aio.Channel) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    return made.unary_unary("/test.Service/Twice")


@channels
@servers
async def test_the_kinds_of_method_that_are_used(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        assert await it.unary("Twice")(b"ab") == b"abab"
        assert await it.unary("Twice")(b"") == b""
        assert await parts(it.stream("Count")(b"5")) == [b"0", b"1", b"2", b"3", b"4"]
        assert await parts(it.stream("Count")(b"0")) == []
        assert len(await parts(it.stream("Count")(b"2000"))) == 2000
        call = it.both("Read")()
        for size in (0, 1, 100_000, 3):
            await call.write(b"x" * size)
            assert await call.read() == b"x" * size
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        assert call.done() and not call.cancelled() and not call.cancel()
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(b"more")


@channels
@servers
async def test_many_calls_at_once_are_each_answered(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        answers = await asyncio.gather(*(it.unary("Twice")(b"%d" % i) for i in range(500)))
        assert answers == [b"%d" % i * 2 for i in range(500)]


@channels
@servers
@pytest.mark.parametrize("size", [16_379, 16_384, 65_536, 1 << 20, 15 << 20])
async def test_large_messages_go_both_ways(serves: Http2, asks: Http2, size: int) -> None:
    async with both(serves, asks) as it:
        assert await it.unary("Large")(b"%d" % size) == bytes(size)
        sent = os.urandom(1024) * (size // 2 // 1024)
        assert await it.unary("Twice")(sent) == sent * 2


@channels
@servers
async def test_a_message_that_is_too_large_is_not_taken_and_others_go_on(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        for call in (
            it.unary("Twice")(bytes(MAX_REQUEST_BYTES + 1)),
            it.unary("Large")(b"%d" % (MAX_RESPONSE_BYTES + 1)),
        ):
            assert (await refused(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        link = it.both("Read")()
        await link.write(b"a")
        assert await link.read() == b"a"
        # grpc's own calls it INTERNAL.
        await refused(link.write(bytes(MAX_REQUEST_BYTES + 1)))
        assert await it.unary("Twice")(b"a") == b"aa"


@channels
@servers
async def test_metadata_goes_both_ways(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        metadata = (("x-text", "a b"), ("x-data-bin", b"\0\1\xff"), ("x-twice", "1"), ("x-twice", "2"))
        for given in (metadata, grpc.aio.Metadata(*metadata)):
            call = it.unary("Context")(b"", metadata=given)
            assert (await call).decode() == r"x-data-bin=b'\x00\x01\xff' x-text='a b' x-twice='1' x-twice='2'"
            assert {("first", "1"), ("first-bin", b"\0\xff")} <= set(await call.initial_metadata())
            assert {("last", "2"), ("last-bin", b"\xff\0")} <= set(await call.trailing_metadata())


@channels
@servers
async def test_statuses(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        error = await refused(it.unary("Abort")(b""))
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "none of it, 100 % sure: ü\n")
        assert {("why", "so"), ("b-bin", b"\1")} <= set(error.trailing_metadata())
        assert (await refused(it.unary("Code")(b""))).code() is grpc.StatusCode.DATA_LOSS
        assert (await refused(it.unary("Fail")(b""))).code() is grpc.StatusCode.UNKNOWN
        assert (await refused(it.unary("Nothing")(b""))).code() is grpc.StatusCode.UNIMPLEMENTED
        call = it.stream("Breaks")(b"")
        assert await call.read() == b"one"
        error = await refused(call.read())
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "gone")
        error = await refused(parts(it.stream("Breaks")(b"")))
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "gone")
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE and await call.details() == "gone"


@channels
@servers
async def test_a_deadline_ends_the_call_at_both_ends(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        # Long enough that a busy machine begins it before it is over.
        call = it.stream("Hold")(b"", timeout=2.0)
        assert await call.read() == b"begun"
        assert 0 < (call.time_remaining() or 0) <= 2.0
        assert (await refused(call.read())).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: it.service.cancelled == 1 and not it.service.running)
        assert await it.unary("Twice")(b"a", timeout=5.0) == b"aa"


@channels
@servers
async def test_a_cancelled_call_is_cancelled_at_the_server(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        calls = [it.stream("Hold")(b"") for _ in range(20)]
        for call in calls:
            assert await call.read() == b"begun"
        for call in calls:
            assert call.cancel() and not call.cancel()
        await until(lambda: it.service.cancelled == 20 and not it.service.running)
        with pytest.raises(asyncio.CancelledError):
            await calls[0].read()
        assert await calls[1].code() is grpc.StatusCode.CANCELLED


@channels
@servers
async def test_a_cancelled_task_cancels_the_call_that_it_waits_for(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        waits = it.unary("Wait")(b"")
        held = it.stream("Hold")(b"")

        async def first() -> None:
            await waits

        async def second() -> None:
            async for _ in held:
                pass

        tasks = [asyncio.create_task(first()), asyncio.create_task(second())]
        await until(lambda: it.service.running == 2)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        await until(lambda: waits.cancelled() and held.cancelled())
        await until(lambda: it.service.cancelled == 2)


@channels
@servers
async def test_whoever_does_not_read_stops_that_call_alone(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        slow = it.stream("Flood")(b"100000")
        assert await slow.read() == bytes(100_000)
        written = -1

        def stands() -> bool:
            nonlocal written
            before, written = written, it.service.written
            return before == written

        await until(stands)
        assert it.service.written < 1_000
        assert len(await parts(it.stream("Count")(b"2000"))) == 2000
        slow.cancel()
        await until(lambda: not it.service.running)


@channels
@servers
async def test_a_server_that_does_not_read_stops_the_writer(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        call = it.both("Read")()
        written = 0

        async def write() -> None:
            nonlocal written
            while True:
                await call.write(bytes(100_000))
                written += 1

        # What the server reads it sends back, and nobody reads that.
        writing, seen = asyncio.create_task(write()), -1

        def stands() -> bool:
            nonlocal seen
            before, seen = seen, written
            return before == written > 0

        await until(stands)
        assert written < 1_000
        writing.cancel()
        await asyncio.wait((writing,))
        assert await it.unary("Twice")(b"a") == b"aa"


@channels
@servers
async def test_done_callbacks(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        told: list[object] = []
        call = it.unary("Twice")(b"a")
        call.add_done_callback(told.append)
        assert await call == b"aa"
        await until(lambda: told == [call])


@channels
@servers
async def test_generated_stubs(serves: Http2, asks: Http2) -> None:
    class Inference(inference_pb2_grpc.InferenceServiceServicer):
        async def Generate(
            self, request: inference_pb2.GenerateRequest, context: object
        ) -> inference_pb2.GenerateResponse:
            return inference_pb2.GenerateResponse(started=inference_pb2.Started(server=request.generation.model))

        async def GenerateStream(
            self, request: inference_pb2.GenerateStreamRequest, context: object
        ) -> AsyncIterator[inference_pb2.GenerateStreamResponse]:
            yield inference_pb2.GenerateStreamResponse()

    made, health = server(serves), Health(["stoker.v1.InferenceService"])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Inference(), made)
    made.add_generic_rpc_handlers((health.handlers(),))
    port = made.add_insecure_port("127.0.0.1:0")
    await made.start()
    try:
        async with channel(asks, f"127.0.0.1:{port}") as asking:
            request = inference_pb2.GenerateRequest()
            request.generation.model = "m"
            assert (await inference_pb2_grpc.InferenceServiceStub(asking).Generate(request)).started.server == "m"
            watch = health_pb2_grpc.HealthStub(asking).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            health.set(serving=True)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
    finally:
        await made.stop(None)


@channels
@servers
async def test_a_server_that_leaves_lets_calls_finish_and_later_ones_find_the_next(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        call = it.both("Read")()
        await call.write(b"a")
        assert await call.read() == b"a"
        stopping = asyncio.create_task(it.server.stop(10.0))
        await until(lambda: it.channel.get_state() is not State.READY)
        await call.write(b"b")
        assert await call.read() == b"b"
        assert (await refused(it.unary("Twice")(b"a", timeout=5))).code() is grpc.StatusCode.UNAVAILABLE
        async with serving(serves, int(it.address.split(":")[1])):
            assert await it.unary("Twice")(b"a", timeout=5, wait_for_ready=True) == b"aa"
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
        await asyncio.wait_for(stopping, 5)


class Cable:
    """Between a channel and a server: connections through it can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ends: list[asyncio.StreamWriter] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._ends += [writer, back]
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    def cut(self) -> None:
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()


@channels
@servers
async def test_a_lost_connection_ends_its_calls_and_the_next_call_connects(serves: Http2, asks: Http2) -> None:
    async with serving(serves) as port:
        cable = Cable(port)
        async with (
            await asyncio.start_server(cable.connected, "127.0.0.1", 0) as listening,
            channel(asks, f"127.0.0.1:{listening.sockets[0].getsockname()[1]}") as asking,
        ):
            assert asking.get_state() is State.IDLE
            hold: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = asking.unary_stream("/test.Service/Hold")
            wait: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = asking.unary_unary("/test.Service/Wait")
            call, waits = hold(b""), wait(b"")
            assert await call.read() == b"begun"
            assert asking.get_state() is State.READY
            cable.cut()
            assert (await refused(call.read())).code() is grpc.StatusCode.UNAVAILABLE
            assert (await refused(waits)).code() is grpc.StatusCode.UNAVAILABLE
            await until(lambda: asking.get_state() is State.IDLE)
            assert await twice(asking)(b"a", timeout=5) == b"aa"
            cable.cut()


@channels
async def test_nobody_there(asks: Http2) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with channel(asks, f"127.0.0.1:{port}") as asking:
            error = await refused(twice(asking)(b"a", timeout=5))
            assert error.code() is grpc.StatusCode.UNAVAILABLE and str(port) in (error.details() or "")
            assert asking.get_state() is State.TRANSIENT_FAILURE
            patient = twice(asking)(b"a", timeout=0.3, wait_for_ready=True)
            assert (await refused(patient)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert asking.get_state() is State.SHUTDOWN


@channels
@servers
async def test_a_channel_finds_a_server_that_comes_later(serves: Http2, asks: Http2) -> None:
    async with serving(serves) as port:
        pass
    async with channel(asks, f"127.0.0.1:{port}") as asking:
        ready = asyncio.ensure_future(asking.channel_ready())
        patient = asyncio.ensure_future(_one(twice(asking)(b"a", timeout=10, wait_for_ready=True)))
        await until(lambda: asking.get_state() is State.TRANSIENT_FAILURE)
        async with serving(serves, port):
            assert await patient == b"aa"
            await asyncio.wait_for(ready, 5)
            assert await twice(asking)(b"b") == b"bb"


async def _one(call: "grpc.aio.UnaryUnaryCall[bytes, bytes]") -> bytes:
    answer: bytes = await call
    return answer


@channels
async def test_states_are_waited_for(asks: Http2) -> None:
    async with serving("stoker") as port, channel(asks, f"127.0.0.1:{port}") as asking:
        state = asking.get_state(try_to_connect=True)
        async with asyncio.timeout(5):
            while state is not State.READY:
                await asking.wait_for_state_change(state)
                state = asking.get_state(try_to_connect=True)


@channels
async def test_what_speaks_no_http2_is_no_server(asks: Http2) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening, channel(asks, f"127.0.0.1:{listening.sockets[0].getsockname()[1]}") as asking:
        assert (await refused(twice(asking)(b"a", timeout=5))).code() is grpc.StatusCode.UNAVAILABLE


@channels
@servers
async def test_closing_with_grace_lets_calls_end_and_takes_no_new_ones(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:
        ends, held = it.both("Read")(), it.stream("Hold")(b"")
        await ends.write(b"a")
        assert await ends.read() == b"a"
        assert await held.read() == b"begun"
        closing_now = asyncio.create_task(it.channel.close(2.0))
        await asyncio.sleep(0)
        await ends.done_writing()
        assert await ends.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.UsageError):
            await it.unary("Twice")(b"a")
        await closing_now
        with pytest.raises(asyncio.CancelledError):
            await held.read()
        await until(lambda: it.service.cancelled == 1)


@channels
@servers
async def test_calls_made_and_cancelled_leave_nothing(serves: Http2, asks: Http2) -> None:
    async with both(serves, asks) as it:

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


@channels
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "ipv4:127.0.0.1", "dns:///localhost"])
async def test_addresses_as_grpc_writes_them(asks: Http2, host: str) -> None:
    async with serving("grpc") as port, channel(asks, f"{host}:{port}") as asking:
        assert await twice(asking)(b"a", timeout=5) == b"aa"
