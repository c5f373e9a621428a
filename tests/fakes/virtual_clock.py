"""Virtual time for what asks an event loop for its time: it passes at once, and in order."""

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")

# Rounds of the event loop after which whoever was woken has done what it can without more time.
_ROUNDS = 20


class VirtualTimer:
    """A callback that is due."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Forget it."""
        self.callback = None


class VirtualClock:
    """A SimClock whose time moves when told to."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._numbers = count()

    def time(self) -> float:
        """Now, in seconds."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object], /) -> VirtualTimer:
        """Call back when time reaches `when`."""
        timer = VirtualTimer(callback)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    @property
    def pending(self) -> int:
        """Timers that are not cancelled."""
        return sum(timer.callback is not None for _, _, timer in self._timers)

    async def settle(self) -> None:
        """Let the event loop do what it can at this moment."""
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Let so much time pass, timer by timer."""
        end = self._now + seconds
        await self.settle()
        while self._timers and self._timers[0][0] <= end:
            self._fire()
            await self.settle()
        self._now = end

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of some work, with as much time as it takes. Raises RuntimeError if it waits for nothing."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            await self.settle()
            while not task.done():
                if not self.pending:
                    task.cancel()
                    raise RuntimeError("the work waits, and no timer is due")
                self._fire()
                await self.settle()
        return task.result()

    def _fire(self) -> None:
        when, _, timer = heapq.heappop(self._timers)
        if timer.callback is not None:
            self._now = max(self._now, when)
            timer.callback()
