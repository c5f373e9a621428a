"""A client's connections by address: made when first needed, let go of when nobody has named them for long.

Routers and servers come and go, each at a new address where they run in pods; a client may live for months.
"""

import time
from collections.abc import Callable

from stoker_client.peer import Peer
from stoker_common.clock import Clock

# Longer than a resolver's or a catalog's hiccup.
IDLE_S = 600.0


class Peers:
    """Belongs to one event loop."""

    def __init__(self, make: Callable[[str], Peer], clock: Clock = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._peers: dict[str, Peer] = {}
        self._named_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def at(self, address: str) -> Peer:
        """The connection to this address, from now on needed."""
        self._named_s[address] = self._clock()
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = self._make(address)
        return peer

    async def drop(self, address: str) -> None:
        """Close this one, unless something runs on it."""
        peer = self._peers.get(address)
        if peer is not None and not peer.busy:
            del self._peers[address], self._named_s[address]
            await peer.close()

    async def tidy(self) -> None:
        """Close those that nobody has named for long."""
        before_s = self._clock() - IDLE_S
        for address in [address for address, at_s in self._named_s.items() if at_s < before_s]:
            await self.drop(address)

    async def close(self) -> None:
        """Close all; what runs fails with CANCELLED."""
        self._named_s.clear()
        while self._peers:
            _, peer = self._peers.popitem()
            await peer.close()
