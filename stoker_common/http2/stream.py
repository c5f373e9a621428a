"""One stream of a connection, as the call on it sees it: what came, what is said, whether it is over."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from stoker_common.http2 import fields
from stoker_common.http2.frames import ErrorCode
from stoker_common.http2.inbox import Inbox
from stoker_common.http2.outgoing import Outgoing
from stoker_common.http2.sender import Sender
from stoker_common.refusal import Code


class Served(Protocol):
    """What is done for a stream."""

    @property
    def running(self) -> bool:
        """Whether something still works for it."""

    def came(self) -> None:
        """A message came, or the last one has."""

    def over(self) -> None:
        """Nothing goes out or comes in any more: the answer was sent, or the client has given up, or is lost."""


class Stream:
    """Belongs to its connection, which does what `reset` and `ending` ask."""

    __slots__ = (
        "_ending",
        "_reset",
        "_sender",
        "answered",
        "finished",
        "id",
        "inbox",
        "lingering",
        "metadata_bytes",
        "out",
        "over",
        "served",
    )

    def __init__(
        self,
        stream_id: int,
        out: Outgoing,
        inbox: Inbox,
        sender: Sender,
        reset: Callable[["Stream", ErrorCode], None],
        ending: Callable[["Stream"], None],
    ) -> None:
        self.id = stream_id
        self.out = out
        self.inbox = inbox
        self._sender = sender
        self._reset = reset
        self._ending = ending
        # As RFC 9113 counts them, of the call's.
        self.metadata_bytes = 0
        self.served: Served | None = None
        # Whether something was said.
        self.answered = False
        # Whether all was said, though it may wait to go out.
        self.finished = False
        # Whether nothing can go out, or come in, any more.
        self.over = False
        # Runs while what was said waits for its client.
        self.lingering: asyncio.TimerHandle | None = None

    def begin(self, metadata: bytes = b"") -> None:
        """Say that an answer comes. Once is enough."""
        if not self.answered:
            self.answered = True
            self._sender.headers(self.id, fields.HEADERS + metadata)

    def send(self, message: bytes) -> None:
        """One message of the answer. Runs once a token. Not after `finish`, nor once it is over.

        Where too much waits for the client already, the stream is cut instead.
        """
        if not self.answered:
            self.begin()
        if not self._sender.message(self.out, message):
            self.cut(fields.status(Code.RESOURCE_EXHAUSTED.value, self._sender.too_slow()))

    @property
    def full(self) -> bool:
        """Whether so much waits, of this stream or of the connection, that the handler should, too."""
        return self.out.full or self._sender.crowded(self.out)

    def finish(self, status: bytes, *, waits: bool = True) -> None:
        """The answer's end: a status, with metadata. Alone, it is the whole answer. Not `waits`: over at once."""
        if self.finished or self.over:
            return
        self.finished = True
        block = status if self.answered else fields.HEADERS + status
        self.answered = True
        self._sender.end(self.out, block, waits=waits)
        if not self.over:
            self._ending(self)

    def cut(self, status: bytes) -> None:
        """End the answer now, whatever of it waits."""
        if not self.finished:
            self._sender.drop(self.out)
            # What it has is let go of now, also where the client reads nothing.
            self.finish(status, waits=False)
        else:
            self._reset(self, ErrorCode.CANCEL)
