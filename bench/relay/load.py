"""What a load generator offers, whatever it speaks: streams that count what comes, and single requests."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from bench.relay.script import STAMP_DIGITS, now_us


@dataclass
class Seen:
    """What came over all streams. Delays and gaps, in ms, are those of streams with `sampled`."""

    tokens: int = 0
    messages: int = 0
    delays_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)

    def forget(self) -> None:
        """Begin a window."""
        self.tokens = self.messages = 0
        self.delays_ms.clear()
        self.gaps_ms.clear()


class Watcher:
    """One stream's times: how old each token is when it comes, and how long after the one before."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._last_us = 0

    def came(self, stamps: bytes | str) -> None:
        """A token's text."""
        at_us = now_us()
        self._seen.delays_ms.append((at_us - int(stamps[:STAMP_DIGITS])) / 1e3)
        if self._last_us:
            self._seen.gaps_ms.append((at_us - self._last_us) / 1e3)
        self._last_us = at_us


class Load(Protocol):
    """Speaks to one system. Used inside `async with`, on one event loop."""

    async def stream(self, i: int, how: str, tokens: int, seen: Seen, began: Callable[[], None]) -> None:
        """Stream number `i` to its end. `began` is told when the first token came."""

    async def unary(self) -> None:
        """One request that is answered in one piece."""

    async def close(self) -> None:
        """Close all connections."""


class Lag:
    """How late this process's event loop runs: a load generator that is late measures itself."""

    EVERY_S = 0.01

    def __init__(self) -> None:
        self.late_ms: list[float] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(self.EVERY_S)
            self.late_ms.append((time.monotonic() - before_s - self.EVERY_S) * 1e3)


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
