"""Ends an attempt from outside: its endpoint is being emptied, and its stream can go on elsewhere."""

from collections.abc import Callable

from router.errors import EndpointError


class Interrupt:
    """One attempt's. The transport says how to end it, once there is something to end."""

    __slots__ = ("_end", "error")

    def __init__(self) -> None:
        self.error: EndpointError | None = None
        self._end: Callable[[EndpointError], None] | None = None

    def bind(self, end: Callable[[EndpointError], None]) -> None:
        """For the transport: how the attempt is ended. At once, if it was told to before."""
        self._end = end
        if self.error is not None:
            end(self.error)

    def fire(self, error: EndpointError) -> None:
        """End the attempt with `error`. Once."""
        if self.error is None:
            self.error = error
            if self._end is not None:
                self._end(error)
