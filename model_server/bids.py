"""Routers' bids for this server: a request is taken if no more prompt tokens wait here than its router believes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stoker.v1 import worker_link_pb2
from stoker_common.bid import OUTBID
from stoker_common.refusal import exhausted

_NO_BID = worker_link_pb2.Bid()


class Coming:
    """A prompt that was taken. `computed` once its first token is there; may be called any number of times."""

    __slots__ = ("_bids", "_cached", "_tokens")

    def __init__(self, bids: "Bids", bid: worker_link_pb2.Bid) -> None:
        self._bids = bids
        self._tokens, self._cached = bid.prompt_tokens, bid.cached_prompt_tokens
        bids.coming += self._tokens
        bids.cached += self._cached

    def computed(self) -> None:
        """It waits no more."""
        self._bids.coming -= self._tokens
        self._bids.cached -= self._cached
        self._tokens = self._cached = 0


class Bids:
    """Of all routers. `waiting` tells the prompt tokens that the engines were given and have not computed.

    What was taken counts from that moment: on its way to the engine a long prompt is tokenised first. `cached` of what
    waits need not be computed, as its routers believe.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.coming = self.cached = 0
        self._waiting = waiting

    def admit(self, bid: worker_link_pb2.Bid | None) -> Coming:
        """A request with that bid came. Raises Refusal, reason OUTBID, if more waits."""
        bid = _NO_BID if bid is None else bid
        waiting, of = max(self.coming, self._waiting()), "wait"
        if bid.HasField("most_computed_prompt_tokens"):
            waiting, most, of = waiting - self.cached, bid.most_computed_prompt_tokens, "are to be computed"
        elif bid.HasField("most_waiting_prompt_tokens"):
            most = bid.most_waiting_prompt_tokens
        else:
            most = waiting
        if waiting > most:
            raise exhausted(
                f"{waiting} prompt tokens {of} here, and the router that picked this server wants at most {most}: it"
                " picks anew with the load that was just reported",
                reason=OUTBID,
            )
        return Coming(self, bid)

    @contextmanager
    def take(self, bid: worker_link_pb2.Bid | None) -> Iterator[Coming]:
        """The same, for as long as the block runs."""
        coming = self.admit(bid)
        try:
            yield coming
        finally:
            coming.computed()
