"""The event loop of our processes: uvloop's, with gRPC's wake-ups taken away as fast as they come.

gRPC's poller, a thread, writes a byte into a socket for each event; its reader on the loop handles all events that are
there, and takes one byte. Where several events come in a turn of a busy loop, bytes pile up. At some 280 the socket is
full, and the poller waits until three quarters of them are read, one a turn: for 200 turns nothing that gRPC reads or
writes completes. A server that makes 30 turns a second under load is dead for 7 s (docs/adr/0154).
"""

import fcntl
import sys
import termios
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple, runtime_checkable

import uvloop

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# By name: it is compiled, and of a private module (grpcio 1.81 to 1.85).
_HANDLER = "_handle_events"


@runtime_checkable
class Readable(Protocol):
    """What of a socket is used here."""

    def fileno(self) -> int:
        """Its descriptor."""

    def recv(self, bufsize: int, /) -> bytes:
        """At most so many bytes of what is there."""


class Loop(uvloop.Loop):
    """One of these for each process that uses gRPC. `wake_ups` is what gRPC's reader is called by, None before."""

    wake_ups: "WakeUps | None" = None

    def add_reader(self, fd: "FileDescriptorLike", callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        """See asyncio's."""
        handler = callback.func if isinstance(callback, partial) else callback
        if isinstance(fd, Readable) and getattr(handler, "__name__", "") == _HANDLER:
            self.wake_ups = WakeUps(fd, partial(callback, *args))
            super().add_reader(fd, self.wake_ups)
        else:
            super().add_reader(fd, callback, *args)


class WakeUps:
    """Stands before gRPC's reader of `socket`: leaves it the one byte that it takes.

    An event is there before its byte is written, and the reader takes all events there are after its byte: so those of
    the bytes that are taken here are handled, too, and what comes later has a byte of its own.
    """

    def __init__(self, socket: Readable, handle: Callable[[], Any]) -> None:
        self._socket = socket
        self._handle = handle
        self._count = bytearray(4)

    @property
    def pending(self) -> int:
        """Bytes that are there."""
        fcntl.ioctl(self._socket, termios.FIONREAD, self._count)
        return int.from_bytes(self._count, sys.byteorder)

    def __call__(self) -> None:
        """Something can be read."""
        if (pending := self.pending) > 1:
            self._socket.recv(pending - 1)
        self._handle()


def run(main: Coroutine[Any, Any, T]) -> T:
    """What `main` returns, run on such a loop."""
    return uvloop.run(main, loop_factory=Loop)
