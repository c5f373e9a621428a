"""The model servers that a client streams from itself, and whether it can."""

import time
from collections.abc import Callable

from stoker_client.addresses import connects
from stoker_client.peer import Peer
from stoker_client.peers import Peers
from stoker_common.clock import Clock

# A server that is there connects within milliseconds, one in another zone within a round trip or two.
CONNECT_S = 1.0
# A client that reaches no server, behind a firewall or a NAT, looks again as often.
AGAIN_S = 30.0


class Servers:
    """Connections to servers, made when a router first names them. Belongs to one event loop."""

    def __init__(self, peer: Callable[[str], Peer], clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._peers = Peers(peer, clock)
        self._reached: set[str] = set()
        self._not_before_s = float("-inf")

    @property
    def worth_trying(self) -> bool:
        """Whether streaming from servers is likely to work."""
        return self._clock() >= self._not_before_s

    def give_up(self) -> None:
        """It does not work from here: not to be tried again for a while."""
        self._not_before_s = self._clock() + AGAIN_S

    def was_reached(self, address: str) -> bool:
        """Whether this one was connected once: then it is not the way that is missing."""
        return address in self._reached

    async def connected(self, address: str, within_s: float | None) -> Peer | None:
        """The server at `address`; None if it does not connect."""
        await self._peers.tidy()
        peer = self._peers.at(address)
        if await connects(peer.channel, CONNECT_S if within_s is None else min(CONNECT_S, within_s)):
            self._reached.add(address)
            return peer
        # A server that is gone may never come back here.
        await self._peers.drop(address)
        return None

    async def close(self) -> None:
        """Close all; what runs fails with CANCELLED."""
        await self._peers.close()
