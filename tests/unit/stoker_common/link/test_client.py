"""A link that breaks, or never comes up: its streams and the log are told why, and its owner lives on."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any, cast

import grpc.aio
import pytest

from stoker.v1 import endpoint_pb2, worker_link_pb2
from stoker_common.backoff import Backoff
from stoker_common.channel import MAX_REQUEST_BYTES
from stoker_common.link.client import Link, LinkRules
from stoker_common.link.hello import heard
from stoker_common.link.state import Cause, LinkError, LinkState
from stoker_common.link.versions import COLUMNS, MORE, SPOKEN
from tests.fakes.until import until


class FakeCall:
    """A link's call as grpc.aio's: once it is over, writing raises InvalidStateError, and reading says why."""

    def __init__(self, version: int = 1, running: int | None = None) -> None:
        self.welcome = worker_link_pb2.Welcome(link_version=version)
        if running is not None:
            self.welcome.endpoint.load.running = running
        self.written: list[worker_link_pb2.AttachRequest] = []
        self.over = asyncio.Event()
        self.refused = asyncio.Event()
        self._welcomed = False

    async def write(self, data: bytes) -> None:
        if self.over.is_set():
            self.refused.set()
            raise asyncio.InvalidStateError("RPC already finished.")
        self.written.append(worker_link_pb2.AttachRequest.FromString(data))

    async def read(self) -> bytes:
        if not self._welcomed:
            self._welcomed = True
            return worker_link_pb2.AttachResponse(welcome=self.welcome).SerializeToString()
        await self.refused.wait()
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "Socket closed"
        )

    def cancel(self) -> None:
        """See grpc.aio.Call."""


class FakeChannel:
    """Gives out the calls in turn, the last one for ever."""

    def __init__(self, *calls: FakeCall) -> None:
        self._calls = list(calls)

    def stream_stream(self, method: str) -> Any:
        """As grpc.aio.Channel's."""
        return lambda: self._calls.pop(0) if len(self._calls) > 1 else self._calls[0]


def link_over(
    channel: object,
    on_load: Callable[[endpoint_pb2.Load], None] = lambda load: None,
    on_state: Callable[[LinkState], None] = lambda state: None,
) -> Link:
    return Link(
        "a-1",
        "server a-1 at a-1:1 in a",
        cast(grpc.aio.Channel, channel),
        worker_link_pb2.Hello(),
        LinkRules(),
        Backoff(random.Random(0), 0.01, 0.01),
        time.monotonic,
        on_load,
        on_state,
    )


class DeadCall(FakeCall):
    """Nobody listens there."""

    async def read(self) -> bytes:
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "Connection refused"
        )


class DeadChannel:
    """Counts how often a link is tried."""

    def __init__(self) -> None:
        self.tried = 0

    def stream_stream(self, method: str) -> Any:
        """As grpc.aio.Channel's."""
        self.tried += 1
        return DeadCall


async def test_a_server_that_stays_away_is_told_of_once_however_often_it_is_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    channel = DeadChannel()
    link = link_over(channel)
    running = asyncio.ensure_future(link.run())
    try:
        await until(lambda: channel.tried >= 5)
    finally:
        running.cancel()
        await asyncio.wait((running,))
    assert [record.message for record in caplog.records].count("link down") == 1


async def test_a_write_on_a_link_that_just_broke_fails_its_streams_and_nothing_else() -> None:
    first, second = FakeCall(), FakeCall()
    link = link_over(FakeChannel(first, second))
    running = asyncio.ensure_future(link.run())
    try:
        await until(lambda: link.state is LinkState.UP)
        first.over.set()
        _, stream = link.open(b"", None)
        with pytest.raises(LinkError) as caught:
            await stream.take()
        assert caught.value.cause is Cause.LOST
        assert "Socket closed" in caught.value.refusal.message
        await until(lambda: link.state is LinkState.UP)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait((running,))


async def test_the_load_of_the_welcome_is_told_before_the_link_is_up() -> None:
    told: list[object] = []
    link = link_over(FakeChannel(FakeCall(running=3)), lambda load: told.append(load.running), told.append)
    running = asyncio.ensure_future(link.run())
    try:
        await until(link.tried.is_set)
        assert told == [3, LinkState.UP]
    finally:
        running.cancel()
        await asyncio.wait((running,))


async def test_a_link_that_cannot_be_had_has_been_tried() -> None:
    link = link_over(DeadChannel())
    assert not link.tried.is_set()
    await link.attach()
    assert link.tried.is_set()


async def test_a_server_that_welcomes_in_a_version_that_is_not_spoken_here_gets_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    version = SPOKEN.highest + 1
    link = link_over(FakeChannel(FakeCall(version=version)))
    with caplog.at_level(logging.WARNING):
        why = await link.attach()
    assert why == f"it welcomes in version {version} of the link; {SPOKEN} is spoken here"
    assert link.state is LinkState.DOWN


async def written(call: FakeCall, generations: list[bytes]) -> list[worker_link_pb2.AttachRequest]:
    """What goes out, after Hello, when so many streams begin at once."""
    link = link_over(FakeChannel(call))
    attaching = asyncio.ensure_future(link.attach())
    try:
        await until(lambda: link.state is LinkState.UP)
        assert link.version == call.welcome.link_version
        for generation in generations:
            link.open(generation, None)
        await until(lambda: sum(len(list(heard(_bytes(each)))) for each in call.written) == len(generations) + 1)
        return call.written[1:]
    finally:
        attaching.cancel()
        await asyncio.wait((attaching,))


def _bytes(message: worker_link_pb2.AttachRequest) -> bytes:
    return message.SerializeToString()


async def test_what_begins_at_once_is_one_message_in_order() -> None:
    (message,) = await written(FakeCall(version=MORE), [b"a", b"b", b"c"])
    assert [each.start.generation for each in heard(_bytes(message))] == [b"a", b"b", b"c"]


async def test_a_peer_of_before_gets_each_message_by_itself() -> None:
    messages = await written(FakeCall(version=MORE - 1), [b"a", b"b"])
    assert [each.start.generation for each in messages] == [b"a", b"b"]
    assert not any(each.more for each in messages)


async def test_what_would_be_too_large_together_is_sent_apart() -> None:
    half = b"x" * (MAX_REQUEST_BYTES // 2 - 100)
    messages = await written(FakeCall(version=MORE), [half, half, b"a", half])
    assert all(each.ByteSize() <= MAX_REQUEST_BYTES for each in messages)
    assert [len(each.more) for each in messages] == [2, 0]


class Speaks(FakeCall):
    """A peer that says what it is told to, and then nothing."""

    def __init__(self, *steps: worker_link_pb2.Step) -> None:
        super().__init__(version=COLUMNS)
        self._steps = list(steps)
        self.go = asyncio.Event()

    async def read(self) -> bytes:
        if not self._welcomed:
            return await super().read()
        await self.go.wait()
        if not self._steps:
            return await super().read()
        return worker_link_pb2.AttachResponse(step=self._steps.pop(0)).SerializeToString()


async def test_output_in_columns_comes_before_what_ends_a_stream_in_the_same_step() -> None:
    parts = worker_link_pb2.StepParts(stream_ids=[1, 2, 77], chunks=[b"a", b"b", b"?"], tokens=[1, 2, 1])
    ends = [worker_link_pb2.StreamOutput(stream_id=1, chunk=b"c", last=True)]
    call = Speaks(worker_link_pb2.Step(parts=parts, outputs=ends))
    link = link_over(FakeChannel(call))
    attached = asyncio.ensure_future(link.attach())
    await until(lambda: link.state is LinkState.UP)
    (_, first), (_, second) = link.open(b"", None), link.open(b"", None)
    call.go.set()
    assert await first.take() == b"ac"
    assert await first.take() is None
    assert (await second.take(), second.tokens) == (b"b", 2)
    attached.cancel()
    await asyncio.wait((attached,))


async def test_columns_of_different_lengths_end_the_link_and_nothing_else() -> None:
    call = Speaks(worker_link_pb2.Step(parts=worker_link_pb2.StepParts(stream_ids=[1, 2], chunks=[b"a"], tokens=[1])))
    link = link_over(FakeChannel(call))
    attached = asyncio.ensure_future(link.attach())
    await until(lambda: link.state is LinkState.UP)
    _, stream = link.open(b"", None)
    call.go.set()
    assert "of different lengths" in await attached
    with pytest.raises(LinkError) as caught:
        await stream.take()
    assert caught.value.cause is Cause.LOST
