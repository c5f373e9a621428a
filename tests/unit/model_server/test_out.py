"""What waits to go out on a call: sent one after another, joined where the reader is slow, and never waited for."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from model_server.out import Kept, writing
from stoker.v1 import inference_pb2
from tests.fakes.until import until

pytestmark = pytest.mark.unit


def part(text: str) -> bytes:
    return inference_pb2.GenerateStreamResponse(deltas=[inference_pb2.Delta(text=text)]).SerializeToString()


def texts(data: bytes) -> list[str]:
    return [delta.text for delta in inference_pb2.GenerateStreamResponse.FromString(data).deltas]


class Reader:
    """Takes what is sent when `reads` is set."""

    def __init__(self) -> None:
        self.got: list[list[str]] = []
        self.reads = asyncio.Event()

    async def send(self, data: bytes) -> None:
        self.got.append(texts(data))
        await self.reads.wait()


async def test_what_waits_for_a_slow_reader_is_one_message() -> None:
    reader = Reader()
    async with writing(reader.send) as out:
        out.put(part("a"), 1)
        await until(lambda: reader.got == [["a"]])
        out.put(part("b"), 1)
        out.put(part("c"), 1)
        waiting = asyncio.ensure_future(out.written())
        await asyncio.sleep(0)
        assert not waiting.done()
        reader.reads.set()
        await waiting
        assert reader.got == [["a"], ["b", "c"]]
        # With nothing put there is nothing to wait for.
        await out.written()


class Sink:
    """Takes what has room."""

    def __init__(self, reader: Reader) -> None:
        self.room = True
        self._reader = reader

    def put(self, part: bytes) -> bool:
        if self.room:
            self._reader.got.append(["put", *texts(part)])
        return self.room


async def test_output_goes_to_a_sink_with_room_while_nothing_waits_before_it() -> None:
    reader = Reader()
    sink = Sink(reader)
    async with writing(reader.send, sink) as out:
        out.put_plain(part("a"), 1)
        assert reader.got == [["put", "a"]]
        # What is more than output is never put there, and what comes behind it waits for it.
        out.put(part("b"), 1)
        out.put_plain(part("c"), 1)
        await until(lambda: len(reader.got) == 2)
        out.put_plain(part("d"), 1)
        reader.reads.set()
        await out.written()
        assert reader.got[1:] == [["b", "c"], ["d"]]
        sink.room = False
        out.put_plain(part("e"), 1)
        await out.written()
        sink.room = True
        out.put_plain(part("f"), 1)
        assert reader.got[3:] == [["e"], ["put", "f"]]


async def test_a_call_that_breaks_ends_what_writes_to_it() -> None:
    async def broken(data: bytes) -> None:
        raise ConnectionError(texts(data)[0])

    with pytest.raises(ConnectionError, match="a"):
        async with writing(broken) as out:
            out.put(part("a"), 1)
            await asyncio.Event().wait()


async def test_what_ends_the_block_is_raised_as_it_was() -> None:
    reader = Reader()
    with pytest.raises(KeyError):
        async with writing(reader.send) as out:
            out.put(part("a"), 1)
            await until(lambda: bool(reader.got))
            raise KeyError


async def test_a_block_that_is_cancelled_leaves_no_task() -> None:
    reader = Reader()

    async def block() -> AsyncIterator[None]:
        async with writing(reader.send) as out:
            out.put(part("a"), 1)
            await asyncio.Event().wait()
            yield

    task = asyncio.ensure_future(anext(block()))
    await until(lambda: bool(reader.got))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_what_is_kept_is_one_part() -> None:
    kept = Kept()
    assert kept.whole() == b""
    kept.put(part("a"), 1)
    kept.put(part("b"), 1)
    assert texts(kept.whole()) == ["a", "b"]
