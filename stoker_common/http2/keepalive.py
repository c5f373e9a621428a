"""Whether a silent peer is still there: asked by PING, and gone when nothing comes back."""

import asyncio
from collections.abc import Callable

from stoker_common.http2.limits import Limits

# A loop that was late sees its timers before what came meanwhile: let it read first.
_READ_FIRST_S = 0.05


class Keepalive:
    """One connection's. `ask` sends a PING, `gone` is told once. Only while it is `worth` asking is it looked at."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        worth: Callable[[], bool],
        ask: Callable[[], None],
        gone: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._worth = worth
        self._ask = ask
        self._gone = gone
        # Set by the connection whenever anything comes.
        self.heard = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The peer has begun to speak (before, there is a limit for that, and nothing to ask), or is worth asking."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._limits.ping_interval_s, self._look)

    def stop(self) -> None:
        """The connection is over."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if not self._worth():
            return
        if self.heard:
            self.heard = False
            self.begin()
            return
        self._ask()
        self._wait(self._limits.ping_timeout_s)

    def _wait(self, left_s: float) -> None:
        """For the answer to a PING, or anything else: looked for as often as ever, so that the time counts from it."""
        step_s = min(left_s, self._limits.ping_interval_s)
        self._timer = self._loop.call_later(step_s, self._waited, left_s - step_s)

    def _waited(self, left_s: float) -> None:
        if self.heard:
            self._look()
        elif left_s > 0:
            self._wait(left_s)
        else:
            self._timer = self._loop.call_later(_READ_FIRST_S, self._judge)

    def _judge(self) -> None:
        if self.heard:
            self._look()
        else:
            self._gone()
