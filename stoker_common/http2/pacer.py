"""Lets streams that are ahead of their pace wait together: one timer for all of a server's, however many there are."""

import asyncio
from collections.abc import Callable


class Pacer:
    """Belongs to one event loop. What is held is let go of within `every_s` seconds, all at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, every_s: float) -> None:
        self.every_s = every_s
        self._loop = loop
        self._held: list[Callable[[], None]] = []

    def hold(self, let_go: Callable[[], None]) -> None:
        """Call back soon."""
        if not self._held:
            self._loop.call_later(self.every_s, self._let_go)
        self._held.append(let_go)

    def _let_go(self) -> None:
        held, self._held = self._held, []
        for let_go in held:
            let_go()
