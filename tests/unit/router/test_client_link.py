"""A client's link over a fake call: what a client that does not read, or misbehaves, does to its streams."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc.aio
import pytest
from opentelemetry.context import Context

from router.client_link import ClientLink
from router.entry import Entry
from stoker.v1 import generation_pb2, router_pb2, worker_link_pb2
from stoker_common import status
from stoker_common.link.outbox import Outbox
from stoker_common.refusal import Code, not_found
from stoker_common.sink import Sink
from tests.fakes.until import until

Response = worker_link_pb2.AttachResponse


class FakeContext:
    """A client that says what it is told to, and reads while `reads` is set."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self.got: list[Response] = []
        self.say(hello=worker_link_pb2.Hello(link_version=1, router="client-1", client=True))

    def say(self, **message: Any) -> None:
        """Send one message."""
        self.said.put_nowait(worker_link_pb2.AttachRequest(**message).SerializeToString())

    async def read(self) -> Any:
        """See grpc.aio.ServicerContext."""
        return await self.said.get()

    async def write(self, data: bytes) -> None:
        """See grpc.aio.ServicerContext."""
        await self.reads.wait()
        self.got.append(Response.FromString(data))

    def outputs(self, stream_id: int) -> list[worker_link_pb2.StreamOutput]:
        """What came for one stream."""
        return [out for each in self.got for out in each.step.outputs if out.stream_id == stream_id]


class FakeEntry:
    """Streams that give what the test feeds them, by request id."""

    def __init__(self) -> None:
        self.feeds: dict[str, asyncio.Queue[bytes | None]] = {}
        self.sinks: dict[str, Sink] = {}
        self.closed: list[str] = []

    async def route(
        self, request: router_pb2.RouteRequest, remaining_s: float | None, parent: Context
    ) -> router_pb2.RouteResponse:
        """See Entry."""
        if request.generation.model != "m":
            raise not_found("there is no such model", field="generation.model", reason="MODEL_NOT_FOUND")
        return router_pb2.RouteResponse(server=f"for {request.generation.request_id}")

    async def generate(
        self, generation: generation_pb2.Generation, remaining_s: float | None, parent: Context, sink: Sink
    ) -> AsyncGenerator[bytes, None]:
        """See Entry."""
        self.sinks[generation.request_id] = sink
        feed = self.feeds.setdefault(generation.request_id, asyncio.Queue())
        try:
            while (data := await feed.get()) is not None:
                yield data
        finally:
            self.closed.append(generation.request_id)


class Up:
    """A link and both its sides."""

    def __init__(self) -> None:
        self.context = FakeContext()
        self.entry = FakeEntry()
        self.link = ClientLink(cast(Any, self.context), cast(Entry, self.entry), asyncio.get_running_loop().time)

    async def start(self, stream_id: int) -> asyncio.Queue[bytes | None]:
        """Begin a stream; returns what feeds it."""
        name = f"r{stream_id}"
        generation = generation_pb2.Generation(model="m", request_id=name).SerializeToString()
        self.context.say(start=worker_link_pb2.StartStream(stream_id=stream_id, generation=generation))
        await until(lambda: name in self.entry.feeds)
        return self.entry.feeds[name]


@asynccontextmanager
async def up(monkeypatch: pytest.MonkeyPatch, stream_bytes: int = 1000) -> AsyncGenerator[Up, None]:
    monkeypatch.setattr("router.client_link.Outbox", lambda: Outbox(stream_bytes))
    made = Up()
    running = asyncio.ensure_future(made.link.run())
    try:
        yield made
    finally:
        made.context.reads.set()
        made.context.said.put_nowait(grpc.aio.EOF)
        await running


async def test_what_came_in_one_turn_of_the_loop_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    async with up(monkeypatch) as link:
        feeds = [await link.start(i) for i in range(1, 33)]
        for feed in feeds:
            feed.put_nowait(b"x")
        await until(lambda: len(link.context.outputs(32)) == 1)
        assert sum(each.HasField("step") for each in link.context.got) == 1


async def test_a_client_that_does_not_read_loses_the_stream_that_is_too_far_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with up(monkeypatch) as link:
        long, short = await link.start(1), await link.start(2)
        link.context.reads.clear()
        for _ in range(30):
            long.put_nowait(b"x" * 100)
        short.put_nowait(b"y" * 100)
        await until(lambda: link.entry.closed == ["r1"])
        link.context.reads.set()
        await until(lambda: any(output.last for output in link.context.outputs(1)))
        error = link.context.outputs(1)[-1].error
        refusal = status.from_rpc_status(error.status)
        assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "CLIENT_TOO_SLOW")
        short.put_nowait(b"z")
        short.put_nowait(None)
        await until(lambda: any(output.last for output in link.context.outputs(2)))
        assert b"".join(output.chunk for output in link.context.outputs(2)) == b"y" * 100 + b"z"
        assert not any(output.HasField("error") for output in link.context.outputs(2))


async def test_what_is_put_in_at_once_goes_out_in_order_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    async with up(monkeypatch) as link:
        feed = await link.start(1)
        feed.put_nowait(b"a")
        await until(lambda: len(link.context.outputs(1)) == 1)
        assert link.entry.sinks["r1"].put(b"b")
        feed.put_nowait(b"c")
        feed.put_nowait(None)
        await until(lambda: any(output.last for output in link.context.outputs(1)))
        assert b"".join(output.chunk for output in link.context.outputs(1)) == b"abc"


async def test_of_a_client_that_does_not_read_no_more_is_put_in_than_its_stream_may_have_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with up(monkeypatch, stream_bytes=1000) as link:
        await link.start(1)
        link.context.reads.clear()
        sink = link.entry.sinks["r1"]
        assert [sink.put(b"x" * 400) for _ in range(3)] == [True, True, False]
        link.context.reads.set()
        await until(lambda: len(link.context.outputs(1)) == 1)
        assert link.context.outputs(1)[0].chunk == b"x" * 800
        assert sink.put(b"x" * 400)


async def test_a_cancelled_stream_is_closed_and_says_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with up(monkeypatch) as link:
        feed = await link.start(1)
        feed.put_nowait(b"x")
        await until(lambda: len(link.context.outputs(1)) == 1)
        link.context.say(cancel=worker_link_pb2.CancelStream(stream_id=1))
        await until(lambda: link.entry.closed == ["r1"])
        assert len(link.context.outputs(1)) == 1


async def test_a_client_that_goes_takes_its_streams_along(monkeypatch: pytest.MonkeyPatch) -> None:
    async with up(monkeypatch) as link:
        await link.start(1)
        await link.start(2)
    assert sorted(link.entry.closed) == ["r1", "r2"]


async def test_a_router_that_leaves_ends_the_link_with_its_last_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async with up(monkeypatch) as link:
        feed = await link.start(1)
        link.link.goodbye()
        await until(lambda: any(each.HasField("goodbye") for each in link.context.got))
        generation = generation_pb2.Generation(model="m", request_id="late").SerializeToString()
        link.context.say(start=worker_link_pb2.StartStream(stream_id=2, generation=generation))
        await until(lambda: bool(link.context.outputs(2)))
        assert status.from_rpc_status(link.context.outputs(2)[0].error.status).reason == "ROUTER_DRAINING"
        feed.put_nowait(None)
        await until(lambda: any(output.last for output in link.context.outputs(1)))


async def test_a_link_whose_streams_are_cancelled_all_the_time_still_says_that_it_is_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its writer is woken by each, and has nothing to send."""
    async with up(monkeypatch) as link:
        for stream_id in range(1, 9):
            await link.start(stream_id)
            await asyncio.sleep(0.2)
            link.context.say(cancel=worker_link_pb2.CancelStream(stream_id=stream_id))
        # 1.6 s: at 0.5, 1.0 and 1.5.
        assert sum(each.HasField("heartbeat") for each in link.context.got) == 3


async def test_a_number_that_is_in_use_is_refused_and_its_stream_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with up(monkeypatch) as link:
        feed = await link.start(1)
        link.context.say(start=worker_link_pb2.StartStream(stream_id=1))
        await until(lambda: any(each.HasField("refused") for each in link.context.got))
        (refused,) = [each.refused for each in link.context.got if each.HasField("refused")]
        refusal = status.from_rpc_status(refused.error.status)
        assert (refused.stream_id, refusal.code, refusal.reason) == (1, Code.INVALID_ARGUMENT, "STREAM_IN_USE")
        feed.put_nowait(b"x")
        feed.put_nowait(None)
        await until(lambda: any(output.last for output in link.context.outputs(1)))
        assert b"".join(output.chunk for output in link.context.outputs(1)) == b"x"
        assert not any(output.HasField("error") for output in link.context.outputs(1))


def asks(stream_id: int, model: str) -> worker_link_pb2.AttachRequest:
    """A question for a server."""
    generation = generation_pb2.Generation(model=model, request_id=f"r{stream_id}")
    route = router_pb2.RouteRequest(generation=generation).SerializeToString()
    return worker_link_pb2.AttachRequest(start=worker_link_pb2.StartStream(stream_id=stream_id, route=route))


async def test_a_server_is_asked_for_on_the_link_and_failures_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with up(monkeypatch) as link:
        first = asks(1, "m")
        first.more.extend([asks(2, "none"), asks(3, "m")])
        link.context.said.put_nowait(first.SerializeToString())
        await until(lambda: all(link.context.outputs(stream_id) for stream_id in (1, 2, 3)))
        for stream_id in (1, 3):
            (output,) = link.context.outputs(stream_id)
            assert output.last and not output.HasField("error")
            assert router_pb2.RouteResponse.FromString(output.chunk).server == f"for r{stream_id}"
        (failed,) = link.context.outputs(2)
        refusal = status.from_rpc_status(failed.error.status)
        assert (refusal.code, refusal.reason, refusal.field) == (
            Code.NOT_FOUND,
            "MODEL_NOT_FOUND",
            "generation.model",
        )
        assert sum(each.HasField("step") for each in link.context.got) == 1, "what came as one is answered as one"


async def test_a_question_that_cannot_be_parsed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with up(monkeypatch) as link:
        link.context.say(start=worker_link_pb2.StartStream(stream_id=1, route=b"\xff\xff\xff"))
        await until(lambda: bool(link.context.outputs(1)))
        assert status.from_rpc_status(link.context.outputs(1)[0].error.status).code is Code.INVALID_ARGUMENT
