"""Several sequences of one request on the engine, merged in the order in which their outputs come."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing

from model_server.engine import Engine, EngineDead, EngineOutput, EngineRequest
from model_server.meter import SequenceMeter

# Takes outputs with the index of their sequence.
Emit = Callable[[Sequence[tuple[int, EngineOutput]]], Awaitable[None]]


async def relay(
    engine: Engine, requests: Mapping[int, EngineRequest], meters: Mapping[int, SequenceMeter], emit: Emit
) -> None:
    """Run all `requests`, by index, and hand their outputs to `emit` until all have finished.

    Whatever ends it early, an error of one sequence, of `emit`, or a cancel, takes every sequence off the engine.
    Raises EngineError, and what `emit` raises.
    """
    if len(requests) == 1:
        ((index, request),) = requests.items()
        await _relay_one(engine, index, request, meters[index], emit)
        return
    # Two places a sequence: one is taken while the next comes. More would hide a slow reader from the engine.
    queue: asyncio.Queue[tuple[int, EngineOutput]] = asyncio.Queue(2 * len(requests))
    try:
        async with asyncio.TaskGroup() as tasks:
            for index, request in requests.items():
                tasks.create_task(_relay_one(engine, index, request, meters[index], _put_into(queue)))
            unfinished = len(requests)
            while unfinished:
                batch = [await queue.get()]
                while not queue.empty():
                    batch.append(queue.get_nowait())
                unfinished -= sum(1 for _, output in batch if output.finish_reason)
                await emit(batch)
    except ExceptionGroup as group:
        # What failed first is the cause. A caller handles one error, whatever `n` is. (Not `except*`: in Debian 12's
        # Python, 3.11.2, it wraps even a single raised error in another group.)
        raise _first(group) from None


async def _relay_one(engine: Engine, index: int, request: EngineRequest, meter: SequenceMeter, emit: Emit) -> None:
    clock = time.monotonic
    finished = False
    try:
        async with aclosing(engine.generate(request)) as outputs:
            async for output in outputs:
                meter.output(len(output.token_ids), output.cached_tokens, clock(), output.prefill_ms)
                finished = bool(output.finish_reason)
                meter.delivering = True
                await emit(((index, output),))
                meter.delivering = False
    finally:
        meter.end()
    if not finished:
        raise EngineDead("the engine ended a sequence that nobody had ended")


def _put_into(queue: asyncio.Queue[tuple[int, EngineOutput]]) -> Emit:
    async def put(batch: Sequence[tuple[int, EngineOutput]]) -> None:
        for each in batch:
            await queue.put(each)

    return put


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
