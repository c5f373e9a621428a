"""A model on its way to being hot: made once, followed by any number."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from stoker_common.clock import Clock
from stoker_common.refusal import Refusal

# Often enough for a bar to move, rarely enough for a hundred who look.
_TELL_EVERY_S = 0.5
# An estimate that was too short does not say that it is done.
_NEARLY = 0.99


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. `remaining_s` is None where nobody has measured it yet."""

    activity: str
    fraction: float
    remaining_s: float | None


class Move:
    """One model's way. `expected_s`: how long it took before, None if it never did."""

    def __init__(self, model: str, expected_s: float | None, clock: Clock) -> None:
        self.model = model
        self._expected_s = expected_s
        self._clock = clock
        self._began_s = clock()
        self._activity = "waiting for room"
        self._done = False
        self._failed: Callable[[], Refusal] | None = None
        self._news = asyncio.Event()

    def tell(self, activity: str) -> None:
        """What is done now."""
        self._activity = activity
        self._wake()

    def begin(self) -> None:
        """There is room: from here on it takes what it takes."""
        self._began_s = self._clock()

    def end(self, failed: Callable[[], Refusal] | None = None) -> None:
        """It is hot, or will not be."""
        self._done = True
        self._failed = failed
        self._wake()

    @property
    def progress(self) -> Progress:
        """How far it is now."""
        if self._expected_s is None:
            return Progress(self._activity, 0.0, None)
        elapsed_s = self._clock() - self._began_s
        remaining_s = max(0.0, self._expected_s - elapsed_s)
        fraction = min(elapsed_s / self._expected_s, _NEARLY) if self._expected_s > 0 else _NEARLY
        return Progress(self._activity, fraction, remaining_s)

    async def follow(self) -> AsyncGenerator[Progress, None]:
        """The progress, whenever there is some, until it is hot. Raises Refusal if it will not be."""
        while not self._done:
            news = self._news
            yield self.progress
            try:
                async with asyncio.timeout(_TELL_EVERY_S):
                    await news.wait()
            except TimeoutError:
                continue
        if self._failed is not None:
            raise self._failed()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
