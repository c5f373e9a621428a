"""One stream of a connection, as the call on it sees it at the server: what came, what is said, whether it is over."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from stoker_common.http2 import fields
from stoker_common.http2.faults import StreamFault
from stoker_common.http2.frames import END_STREAM, ErrorCode, header_frames
from stoker_common.http2.inbox import Inbox
from stoker_common.http2.outgoing import Outgoing
from stoker_common.http2.sender import Sender
from stoker_common.http2.stream import Stream
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


class ServerStream(Stream):
    """Its connection does what `reset` and `ending` ask."""

    __slots__ = (
        "_ending",
        "_reset",
        "_sender",
        "answered",
        "finished",
        "lingering",
        "metadata_bytes",
        "served",
    )

    def __init__(
        self,
        stream_id: int,
        out: Outgoing,
        inbox: Inbox,
        sender: Sender,
        reset: Callable[["ServerStream", ErrorCode], None],
        ending: Callable[["ServerStream"], None],
    ) -> None:
        super().__init__(stream_id, out, inbox)
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
        # Runs while what was said waits for its client.
        self.lingering: asyncio.TimerHandle | None = None

    # What its connection tells.

    @property
    def listens(self) -> bool:
        """See `Stream`."""
        return not self.finished

    def expect(self, size: int, *, ends: bool) -> None:
        """See `Stream`. A content-length that is not theirs makes a request malformed (RFC 9113, section 8.1.1)."""
        if not self.inbox.as_long_as_said(size, ends=ends):
            text = "its DATA have not the length that content-length says"
            raise StreamFault(self.id, ErrorCode.PROTOCOL_ERROR, text)

    def came(self) -> None:
        """See `Stream`."""
        if self.served is not None:
            self.served.came()

    def ended(self) -> None:
        """See `Stream`."""
        self.inbox.end()
        if self.inbox.broken_off and not self.finished:
            self.refuse(Code.INTERNAL, "the request ends within a message")
        elif self.served is not None:
            self.served.came()

    def refuse(self, code: Code, why: str) -> None:
        """See `Stream`."""
        self.cut(fields.status(code.value, why))

    def leave(self) -> bool:
        """See `Stream`."""
        if self.lingering is not None:
            # A timer that is cancelled holds nothing, one that runs all that was asked and said.
            self.lingering.cancel()
        self.inbox.messages.clear()
        if self.served is None:
            return True
        self.served.over()
        # Counted until its handler has ended.
        return not self.served.running

    # What its call says.

    def begin(self, metadata: bytes = b"") -> None:
        """Say that an answer comes. Once is enough."""
        if not self.answered:
            self.answered = True
            self._sender.control(header_frames(fields.HEADERS + metadata, 0, self.id))

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
        self._sender.end(self.out, header_frames(block, END_STREAM, self.id), waits=waits)
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
