"""One stream of a connection, as the call on it sees it at the client: what is asked, what came, how it ended."""

from typing import Final, Protocol

from stoker_common.http2.answer import End
from stoker_common.http2.faults import StreamFault
from stoker_common.http2.frames import DATA, END_STREAM, ErrorCode, head
from stoker_common.http2.inbox import Inbox
from stoker_common.http2.outgoing import Outgoing
from stoker_common.http2.request import Metadata
from stoker_common.http2.sender import Sender
from stoker_common.http2.stream import Stream
from stoker_common.refusal import Code

_LOST: Final = End.of(Code.UNAVAILABLE, "the connection was lost")


class Asks(Protocol):
    """Whom a stream is for."""

    def answered(self, metadata: Metadata) -> None:
        """The server has begun to answer."""

    def came(self) -> None:
        """Messages are in the inbox."""

    def over(self, end: End) -> None:
        """The call has ended."""


class ClientStream(Stream):
    """Its connection lets it go once `end` is set."""

    __slots__ = ("_sender", "answered", "call", "end", "sent")

    def __init__(self, stream_id: int, out: Outgoing, inbox: Inbox, sender: Sender, call: Asks) -> None:
        super().__init__(stream_id, out, inbox)
        self._sender = sender
        self.call: Asks | None = call
        # Whether headers came.
        self.answered = False
        # Whether all that is asked is on its way.
        self.sent = False
        # How it ended; while it is under way, how it ends if nobody says otherwise.
        self.end = _LOST

    # What its connection tells.

    @property
    def listens(self) -> bool:
        """See `Stream`."""
        return True

    def expect(self, size: int, *, ends: bool) -> None:
        """See `Stream`."""
        if not self.answered:
            raise StreamFault(self.id, ErrorCode.PROTOCOL_ERROR, "DATA before the answer's headers")

    def came(self) -> None:
        """See `Stream`."""
        if self.call is not None:
            self.call.came()

    def ended(self) -> None:
        """See `Stream`. gRPC's answers end with trailers, never with DATA."""
        raise StreamFault(self.id, ErrorCode.PROTOCOL_ERROR, "the answer ended without a status")

    def refuse(self, code: Code, why: str) -> None:
        """See `Stream`."""
        raise Refused(self.id, code, why)

    def leave(self) -> bool:
        """See `Stream`."""
        # They know each other: neither is to wait for the garbage collector.
        call, self.call = self.call, None
        if call is not None:
            call.over(self.end)
        return True

    # What its call asks.

    def send(self, message: bytes, *, last: bool = False) -> bool:
        """One message, not after the last, nor once over. False, and it is not sent, where too much waits already."""
        if not self._sender.message(self.out, message, END_STREAM if last else 0):
            return False
        self.sent = last and self.out.ending is None
        return True

    def close(self) -> None:
        """No more is asked."""
        self._sender.end(self.out, head(0, DATA, END_STREAM, self.id))

    @property
    def full(self) -> bool:
        """Whether so much waits, of this stream or of the connection, that whoever writes should, too."""
        return self.out.full or self._sender.crowded(self.out)

    def too_slow(self) -> str:
        """Why a message was not sent."""
        return self._sender.too_slow()


class Refused(StreamFault):
    """The client takes no more of an answer."""

    def __init__(self, stream_id: int, code: Code, why: str) -> None:
        super().__init__(stream_id, ErrorCode.CANCEL, why)
        self.grpc_code = code
