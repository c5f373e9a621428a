"""Waiting for a condition, with a deadline."""

import asyncio
from collections.abc import Callable

_POLL_S = 0.005


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> float:
    """Poll until the condition holds; returns how long that took, in seconds. Raises AssertionError if it does not."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        if loop.time() - began > within_s:
            raise AssertionError(f"it did not come about within {within_s} s")
        await asyncio.sleep(_POLL_S)
    return loop.time() - began
