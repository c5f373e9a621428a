"""One generation on a link: what waits for its reader, and what passes it by."""

import asyncio

import pytest

from stoker.v1 import inference_pb2
from stoker_common.link.state import Cause, LinkError
from stoker_common.link.stream import LinkStream
from stoker_common.refusal import unavailable
from tests.fakes.until import until

Message = inference_pb2.GenerateStreamResponse
STARTED = Message(started=inference_pb2.Started(model="m")).SerializeToString()


def output(number: int) -> bytes:
    """A part of nothing but output."""
    return Message(deltas=[inference_pb2.Delta(text=f"{number} ", token_ids=[number])]).SerializeToString()


class Bench:
    """A stream, what its reader took, and what was relayed past it; `log` has both in order."""

    def __init__(self, room: int = 1000) -> None:
        self.stream = LinkStream(1 << 20)
        self.stream.relay(self._relayed)
        self.room = room
        self.relayed: list[tuple[bytes, int]] = []
        self.taken: list[bytes] = []
        self.log: list[bytes] = []
        self.reader = asyncio.ensure_future(self._read())

    def _relayed(self, chunk: bytes, tokens: int) -> bool:
        if len(self.relayed) == self.room:
            return False
        self.relayed.append((chunk, tokens))
        self.log.append(chunk)
        return True

    async def _read(self) -> None:
        while (data := await self.stream.take()) is not None:
            self.taken.append(data)
            self.log.append(data)

    async def waits(self) -> None:
        """Until the reader has taken all and waits."""
        await until(lambda: self.stream.waiting() in (0, None))
        for _ in range(3):
            await asyncio.sleep(0)


async def test_output_that_finds_its_reader_waiting_passes_it_by() -> None:
    bench = Bench()
    await bench.waits()
    for number in (1, 2):
        assert bench.stream.put(output(number), 1)
    assert bench.relayed == [(output(1), 1), (output(2), 1)]
    bench.stream.end()
    await bench.reader
    assert bench.taken == []


async def test_nothing_overtakes_what_waits_for_its_reader() -> None:
    bench = Bench()
    await bench.waits()
    bench.stream.put(output(1), 1)
    bench.stream.put(STARTED)
    bench.stream.put(output(2), 1)
    await bench.waits()
    bench.stream.put(output(3), 1)
    bench.stream.end()
    await bench.reader
    assert bench.log == [output(1), STARTED + output(2), output(3)]
    assert bench.taken == [STARTED + output(2)]


async def test_what_finds_no_room_waits_for_its_reader_with_its_tokens() -> None:
    bench = Bench(room=1)
    await bench.waits()
    for number in (1, 2, 3):
        bench.stream.put(output(number), number)
    assert bench.stream.waiting() == 5
    await bench.waits()
    assert bench.log == [output(1), output(2) + output(3)]
    assert bench.stream.tokens == 5
    bench.reader.cancel()


async def test_nothing_is_relayed_once_the_stream_has_failed() -> None:
    bench = Bench()
    await bench.waits()
    error = LinkError(Cause.LOST, unavailable("gone", reason="SERVER_LOST"))
    bench.stream.fail(error)
    bench.stream.put(output(1), 1)
    with pytest.raises(LinkError) as caught:
        await bench.reader
    assert caught.value is error
    assert (bench.relayed, bench.taken) == ([], [output(1)])


async def test_nothing_is_relayed_to_a_reader_that_was_cancelled() -> None:
    bench = Bench()
    await bench.waits()
    bench.reader.cancel()
    bench.stream.put(output(1), 1)
    await asyncio.wait([bench.reader])
    bench.stream.put(output(2), 1)
    assert bench.relayed == []


async def test_a_relay_that_breaks_breaks_its_own_stream_only() -> None:
    bench = Bench()
    await bench.waits()

    def breaks(chunk: bytes, tokens: int) -> bool:
        raise ZeroDivisionError

    bench.stream.relay(breaks)
    assert bench.stream.put(output(1), 1)
    with pytest.raises(ZeroDivisionError):
        await bench.reader
