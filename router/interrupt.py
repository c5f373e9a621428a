"""Ends an attempt from outside: its endpoint is being emptied, and its stream can go on elsewhere."""

from collections.abc import Callable

from router.errors import EndpointError


class Interrupt:
    """One attempt's. The transport says how to end it, once there is something to end."""

    __slots__ = ("_end", "error", "waiting")

    def __init__(self) -> None:
        self.error: EndpointError | None = None
        self._end: Callable[[EndpointError], None] | None = None
        # Tokens that came and were not taken yet; None where that is not known, or no more are to come.
        self.waiting: Callable[[], int | None] = _unknown

    def bind(self, end: Callable[[EndpointError], None], waiting: Callable[[], int | None] | None = None) -> None:
        """For the transport: how the attempt is ended, at once if it was told to before; and what waits for it."""
        self._end = end
        if waiting is not None:
            self.waiting = waiting
        if self.error is not None:
            end(self.error)

    def fire(self, error: EndpointError) -> None:
        """End the attempt with `error`. Once."""
        if self.error is None:
            self.error = error
            if self._end is not None:
                self._end(error)


def _unknown() -> int | None:
    return None
