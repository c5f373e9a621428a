"""Several sequences of one request on the engine, each handed on as it comes."""

import asyncio
import time
from collections.abc import Callable, Mapping

from model_server.engine import Engine, EngineDead, EngineOutput, EngineRequest
from model_server.meter import SequenceMeter

# Takes an output and the index of its sequence, at once.
TakeOf = Callable[[int, EngineOutput], None]


async def relay(
    engine: Engine, requests: Mapping[int, EngineRequest], meters: Mapping[int, SequenceMeter], take: TakeOf
) -> None:
    """Run all `requests`, by index, and hand their outputs to `take` until all have finished.

    Whatever ends it early, an error of one sequence, of `take`, or a cancel, takes every sequence off the engine.
    Raises EngineError, and what `take` raises.
    """
    if len(requests) == 1:
        ((index, request),) = requests.items()
        await _run(engine, index, request, meters[index], take)
        return
    try:
        async with asyncio.TaskGroup() as tasks:
            for index, request in requests.items():
                tasks.create_task(_run(engine, index, request, meters[index], take))
    except ExceptionGroup as group:
        # What failed first is the cause. A caller handles one error, whatever `n` is. (Not `except*`: in Debian 12's
        # Python, 3.11.2, it wraps even a single raised error in another group.)
        raise _first(group) from None


async def _run(engine: Engine, index: int, request: EngineRequest, meter: SequenceMeter, take: TakeOf) -> None:
    clock = time.monotonic
    finished = False

    def took(output: EngineOutput) -> None:
        # Once a token.
        nonlocal finished
        meter.output(len(output.token_ids), output.cached_tokens, clock(), output.prefill_ms)
        if output.finish_reason:
            finished = True
        take(index, output)

    try:
        await engine.run(request, took)
    finally:
        meter.end()
    if not finished:
        raise EngineDead("the engine ended a sequence that nobody had ended")


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
