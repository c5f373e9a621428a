"""Read from a generator or handed over: each is made of the other, and loses no output, no error and no cancel."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from model_server.engine import EngineDead, EngineOutput, EngineRequest, Take
from model_server.handing import generated, handed
from stoker.v1 import generation_pb2

pytestmark = pytest.mark.unit

REQUEST = EngineRequest("one", (1,), generation_pb2.Sampling(), 10)
A, B = EngineOutput("a", (1,)), EngineOutput("b", (2,))


class Engine:
    """Hands over two outputs at once, and then does as `then` says."""

    def __init__(self, then: Exception | None = None, *, waits: bool = False) -> None:
        self._then = then
        self._waits = waits
        self.cancelled = False

    async def run(self, request: EngineRequest, take: Take) -> None:
        assert request is REQUEST
        take(A)
        take(B)
        if self._then is not None:
            raise self._then
        if self._waits:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise


async def test_all_that_is_handed_over_is_generated() -> None:
    assert [output async for output in generated(Engine().run, REQUEST)] == [A, B]


async def test_an_error_comes_behind_what_came_before() -> None:
    outputs = generated(Engine(EngineDead("gone")).run, REQUEST)
    assert [await anext(outputs), await anext(outputs)] == [A, B]
    with pytest.raises(EngineDead):
        await anext(outputs)


async def test_closing_the_generator_cancels_what_runs() -> None:
    engine = Engine(waits=True)
    async with aclosing(generated(engine.run, REQUEST)) as outputs:
        assert await anext(outputs) == A
    assert engine.cancelled


async def _outputs(closed: list[bool]) -> AsyncGenerator[EngineOutput, None]:
    try:
        yield A
        yield B
    finally:
        closed.append(True)


async def test_what_is_generated_is_handed_over_and_an_error_of_the_taker_closes_the_generator() -> None:
    got: list[EngineOutput] = []
    closed: list[bool] = []
    await handed(_outputs(closed), got.append)
    assert got == [A, B] and closed == [True]

    def no_room(_: EngineOutput) -> None:
        raise BufferError

    with pytest.raises(BufferError):
        await handed(_outputs(closed), no_room)
    assert closed == [True, True]
