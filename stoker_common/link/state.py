"""Whether a link carries generations, and how a generation on it fails."""

from enum import Enum

from stoker_common.refusal import Refusal


class LinkState(Enum):
    """What a link is good for."""

    DOWN = "down"
    UP = "up"
    # The peer said goodbye: what runs goes on, nothing new goes there.
    LEAVING = "leaving"
    # The peer's engine stands still: what ran goes on elsewhere, and only who has no other choice goes there.
    STALLED = "stalled"


class Cause(Enum):
    """What the failure of a stream says of its peer."""

    # The link is gone: nothing reaches the peer, or nothing comes back.
    LOST = "lost"
    # The peer ended the stream with a status.
    TOLD = "told"
    # The peer says hello and does not work on the stream.
    STUCK = "stuck"
    # Whoever reads the answer does not keep up.
    SLOW_READER = "slow reader"


class LinkError(Exception):
    """A stream on a link failed. `refusal` says how, as the peer told it where it did."""

    def __init__(self, cause: Cause, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.cause = cause
        self.refusal = refusal
