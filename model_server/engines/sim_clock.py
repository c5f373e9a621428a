"""The simulator's time: asyncio's event loop is one such clock, and tests bring one that they turn by hand."""

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A callback that is due."""

    def cancel(self) -> None:
        """Forget it."""


class SimClock(Protocol):
    """Seconds from an arbitrary start, and callbacks at a time."""

    def time(self) -> float:
        """Now."""

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        """Call back at this time, or soon if it has passed; never from within this call."""
