"""Lets streams that are ahead of their pace wait together: one timer for all of a server's, however many there are."""

import asyncio
from collections.abc import Callable


class Pacer:
    """Belongs to one event loop. What is held is let go of within `every_s` seconds, all at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, every_s: float) -> None:
        self.every_s = every_s
        self._loop = loop
        self._held: list[tuple[Callable[[], None], Callable[[Exception], None]]] = []

    def hold(self, let_go: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        """Call back soon. Where that raises, `failed` is told, and the others are called all the same."""
        if not self._held:
            self._loop.call_later(self.every_s, self._let_go)
        self._held.append((let_go, failed))

    def _let_go(self) -> None:
        held, self._held = self._held, []
        for let_go, failed in held:
            try:
                let_go()
            except Exception as error:
                # By itself, so that nothing it does is the others' affair, either.
                self._loop.call_soon(failed, error)
