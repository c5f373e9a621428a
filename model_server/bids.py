"""Routers' bids for this server: a request is taken if no more prompt tokens wait here than its router believes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stoker.v1 import worker_link_pb2
from stoker_common.bid import OUTBID
from stoker_common.refusal import exhausted


class Coming:
    """A prompt that was taken. `computed` once its first token is there; may be called any number of times."""

    __slots__ = ("_bids", "_tokens")

    def __init__(self, bids: "Bids", tokens: int) -> None:
        self._bids = bids
        self._tokens = tokens
        bids.coming += tokens

    def computed(self) -> None:
        """It waits no more."""
        self._bids.coming -= self._tokens
        self._tokens = 0


class Bids:
    """Of all routers. `waiting` tells the prompt tokens that the engines were given and have not computed.

    What was taken counts from that moment: on its way to the engine a long prompt is tokenised first.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.coming = 0
        self._waiting = waiting

    @contextmanager
    def take(self, bid: worker_link_pb2.Bid | None) -> Iterator[Coming]:
        """A request with that bid, for as long as the block runs. Raises Refusal, reason OUTBID, if more waits."""
        if bid is not None and bid.HasField("most_waiting_prompt_tokens"):
            waiting, most = max(self.coming, self._waiting()), bid.most_waiting_prompt_tokens
            if waiting > most:
                raise exhausted(
                    f"{waiting} prompt tokens wait here, and the router that picked this server wants at most {most}:"
                    " it picks anew with the load that was just reported",
                    reason=OUTBID,
                )
        coming = Coming(self, bid.prompt_tokens if bid is not None else 0)
        try:
            yield coming
        finally:
            coming.computed()
