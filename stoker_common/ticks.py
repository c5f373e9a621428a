"""What a process looks at every so often, it looks at together: an idle process that wakes pays for each time it does.

A wake-up costs some 0.2 ms of cold caches and next to nothing for what is done at it (docs/adr/0175).
"""

import asyncio

# Who is late, or a little early, waits for the next moment but one rather than for less than this: on a loop that is
# always late the mean is the interval then, and who counts ticks counts no more of them than before.
_LEAST = 0.5


async def tick(every_s: float) -> None:
    """Sleep until the next of the moments that lie `every_s` apart on the loop's clock, the same for all who tick.

    That is in no less than half of it, and no more than one and a half.
    """
    await asyncio.sleep(until(asyncio.get_running_loop().time(), every_s))


def until(now_s: float, every_s: float) -> float:
    """How long, in seconds, from `now_s` to the next such moment."""
    left_s = every_s - now_s % every_s
    return left_s if left_s >= _LEAST * every_s else left_s + every_s
