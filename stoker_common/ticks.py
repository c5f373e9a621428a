"""What a process looks at every so often, it looks at together: an idle process that wakes pays for each time it does.

A wake-up costs some 0.2 ms of cold caches and next to nothing for what is done at it (docs/adr/0175).
"""

import asyncio

# Waking a little early counts as on time: the next moment is another one.
_EARLY = 0.25


async def tick(every_s: float) -> None:
    """Sleep until the next of the moments that lie `every_s` apart on the loop's clock, the same for all who tick.

    That is never sooner than a quarter of it, and later than it by a quarter at most.
    """
    await asyncio.sleep(until(asyncio.get_running_loop().time(), every_s))


def until(now_s: float, every_s: float) -> float:
    """How long, in seconds, from `now_s` to the next such moment."""
    left_s = every_s - now_s % every_s
    return left_s if left_s >= _EARLY * every_s else left_s + every_s
