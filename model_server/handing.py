"""The two ways to be given a sequence's outputs, each made of the other: read from a generator, or handed over."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from model_server.engine import EngineOutput, EngineRequest, Take


async def handed(outputs: AsyncGenerator[EngineOutput, None], take: Take) -> None:
    """Hand over what is generated. Raises what either raises; the generator is closed then."""
    async with aclosing(outputs):
        async for output in outputs:
            take(output)


async def generated(
    run: Callable[[EngineRequest, Take], Coroutine[Any, Any, None]], request: EngineRequest
) -> AsyncGenerator[EngineOutput, None]:
    """Generate what `run` hands over. Raises what it raises, behind what came before; closing it cancels `run`."""
    waiting: asyncio.Queue[EngineOutput | None] = asyncio.Queue()
    running = asyncio.ensure_future(run(request, waiting.put_nowait))
    running.add_done_callback(lambda _: waiting.put_nowait(None))
    try:
        while (output := await waiting.get()) is not None:
            yield output
        await running
    finally:
        running.cancel()
        await asyncio.wait((running,))
