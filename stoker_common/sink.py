"""Where parts of an answer may be put at once, without waking whoever waits for them."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Sink(Protocol):
    """One client's end of a stream. Everything before a part that is put in has been taken by then."""

    def put(self, part: bytes) -> bool:
        """Take a serialised part of nothing but output, now and without waiting. Runs once a token.

        False if there is no room: then the part comes the way that all others come, to whoever waits for them, and may
        wait there as long as it must.
        """
