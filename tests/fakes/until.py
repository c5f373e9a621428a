"""Waiting for a condition, with a deadline."""

import asyncio
from collections.abc import Callable

from tests.fakes.stopwatch import Stopwatch

_POLL_S = 0.005


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> float:
    """Poll until the condition holds; returns how long that took, in seconds. Raises AssertionError if it does not.

    Time for which a busy machine did not let this thread run does not count (see `Stopwatch`).
    """
    watch = Stopwatch()
    while not condition():
        if watch.s > within_s:
            raise AssertionError(f"it did not come about within {within_s} s")
        await asyncio.sleep(_POLL_S)
    return watch.s
