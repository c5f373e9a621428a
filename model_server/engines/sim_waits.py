"""Who waits for some of the simulated engine's time to pass, as while a model loads; its death ends all waiting."""

import asyncio
from functools import partial

from model_server.engines.sim_clock import SimClock


class Waits:
    """All of one engine's."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    async def take(self, clock: SimClock, seconds: float) -> None:
        """Let so much time pass, or less if `end` is called meanwhile."""
        passed = asyncio.get_running_loop().create_future()
        self._waiting.add(passed)
        timer = clock.call_at(clock.time() + seconds, partial(_settle, passed))
        try:
            await passed
        finally:
            timer.cancel()
            self._waiting.discard(passed)

    def end(self) -> None:
        """Nobody waits on."""
        for passed in self._waiting:
            _settle(passed)


def _settle(passed: asyncio.Future[None]) -> None:
    if not passed.done():
        passed.set_result(None)
