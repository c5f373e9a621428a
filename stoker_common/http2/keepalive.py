"""Whether a silent client is still there: asked by PING, and gone when nothing comes back."""

import asyncio
from collections.abc import Callable

from stoker_common.http2.limits import Limits

# A loop that was late sees its timers before what came meanwhile: let it read first.
_READ_FIRST_S = 0.05


class Keepalive:
    """One connection's. `ask` sends a PING, `gone` is told once."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limits: Limits, ask: Callable[[], None], gone: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._ask = ask
        self._gone = gone
        # Set by the connection whenever anything comes.
        self.heard = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The client has begun to speak: before, there is a limit for that, and nothing to ask."""
        self._timer = self._loop.call_later(self._limits.ping_interval_s, self._look)

    def stop(self) -> None:
        """The connection is over."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        if self.heard:
            self.heard = False
            self._timer = self._loop.call_later(self._limits.ping_interval_s, self._look)
            return
        self._ask()
        self._timer = self._loop.call_later(self._limits.ping_timeout_s, self._waited)

    def _waited(self) -> None:
        self._timer = self._loop.call_later(_READ_FIRST_S, self._judge)

    def _judge(self) -> None:
        if self.heard:
            self._look()
        else:
            self._gone()
