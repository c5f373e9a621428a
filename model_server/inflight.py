"""The requests a server is serving: lets them in, counts them, and can end them all at once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from stoker_common.refusal import Refusal, deadline_exceeded

# Makes the refusal anew for each request: an exception carries the traceback of the one who raised it.
MakeRefusal = Callable[[], Refusal]


class Entry:
    """One request: the scope that can end it, and why it was ended, if it was."""

    __slots__ = ("failure", "scope")

    def __init__(self, scope: asyncio.Timeout) -> None:
        self.scope = scope
        self.failure: MakeRefusal | None = None

    def end(self, refusal: MakeRefusal) -> None:
        """End it with `refusal`, wherever it waits, unless it ends already."""
        if self.failure is None and not self.scope.expired():
            self.failure = refusal
            self.scope.reschedule(asyncio.get_running_loop().time())


class InFlight:
    """The requests in flight. Belongs to one event loop."""

    def __init__(self, closed: MakeRefusal | None = None) -> None:
        self._entries: set[Entry] = set()
        self._closed = closed
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._entries)

    def open(self) -> None:
        """Let requests in."""
        self._closed = None

    def close(self, refusal: MakeRefusal) -> None:
        """Let no more requests in; those that run go on."""
        self._closed = refusal

    def fail(self, refusal: MakeRefusal) -> None:
        """Let no more requests in, and end those that run with `refusal`, wherever they wait."""
        self._closed = refusal
        for entry in self._entries:
            entry.end(refusal)

    async def wait_empty(self) -> None:
        """Wait until no request is in flight."""
        await self._empty.wait()

    def check_open(self) -> None:
        """Raise the refusal if requests are not let in."""
        if self._closed is not None:
            raise self._closed()

    @asynccontextmanager
    async def request(self, remaining_s: float | None) -> AsyncIterator[Entry]:
        """One request, for as long as the block runs, and for `remaining_s` at most. Raises Refusal."""
        self.check_open()
        if remaining_s is not None and remaining_s <= 0.0:
            raise deadline_exceeded("the deadline had passed when the request arrived")
        scope = asyncio.timeout(remaining_s)
        entry = Entry(scope)
        try:
            async with scope:
                self._entries.add(entry)
                self._empty.clear()
                yield entry
        except TimeoutError:
            if entry.failure is not None:
                raise entry.failure() from None
            if scope.expired():
                raise deadline_exceeded(f"the caller's deadline of {remaining_s:.3g} s passed") from None
            raise
        finally:
            self._entries.discard(entry)
            if not self._entries:
                self._empty.set()
