"""One stream of a connection, at either end: what came, what waits to go out, whether it is over."""

from abc import ABC, abstractmethod

from stoker_common.http2.inbox import Inbox
from stoker_common.http2.outgoing import Outgoing
from stoker_common.refusal import Code


class Stream(ABC):
    """Belongs to its connection, which tells it what came."""

    __slots__ = ("id", "inbox", "out", "over")

    def __init__(self, stream_id: int, out: Outgoing, inbox: Inbox) -> None:
        self.id = stream_id
        self.out = out
        self.inbox = inbox
        # Whether nothing can go out, or come in, any more.
        self.over = False

    @property
    @abstractmethod
    def listens(self) -> bool:
        """Whether what comes is still of use."""

    @abstractmethod
    def expect(self, size: int, *, ends: bool) -> None:
        """DATA of so many bytes came. Raises StreamFault where they may not."""

    @abstractmethod
    def came(self) -> None:
        """A message came."""

    @abstractmethod
    def ended(self) -> None:
        """DATA was the last of what comes."""

    @abstractmethod
    def refuse(self, code: Code, why: str) -> None:
        """What came is not taken: end it now, whatever waits."""

    @abstractmethod
    def leave(self) -> bool:
        """It is over. Whether nothing works for it any more, so that it may be forgotten."""
