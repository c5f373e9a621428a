"""Which version of the worker link two processes speak: the highest that both do. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Versions:
    """What one side speaks, from `lowest` to `highest`."""

    lowest: int
    highest: int

    def answer(self, highest_of_peer: int) -> int | None:
        """For who is attached to: the version to welcome the peer in; None if it speaks none that this side does."""
        version = min(highest_of_peer, self.highest)
        return version if version >= self.lowest else None

    def accept(self, welcomed: int) -> bool:
        """For who attaches: whether this side speaks what it was welcomed in."""
        return self.lowest <= welcomed <= self.highest

    def __str__(self) -> str:
        """For a message to a person."""
        return f"{self.lowest}" if self.lowest == self.highest else f"{self.lowest} to {self.highest}"


# From it on routers answer `StartStream.route`, and several messages may come as one, by `AttachRequest.more`.
ROUTES = MORE = 2
# From it on a step's plain output comes in columns, `Step.parts`.
COLUMNS = 3
# A new version raises the highest; the lowest follows once nobody runs what speaks only that.
SPOKEN = Versions(lowest=1, highest=3)
