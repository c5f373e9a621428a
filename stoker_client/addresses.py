"""The routers that a client knows, and the order in which it tries them."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import grpc

from stoker_client.errors import StokerError
from stoker_client.peer import Peer
from stoker_client.peers import Peers
from stoker_client.sources import Source
from stoker_common.refusal import Code


class Addresses:
    """The routers of one mesh, reached when first needed. Belongs to one event loop."""

    def __init__(self, sources: Sequence[Source], connect_timeout_s: float, peer: Callable[[str], Peer]) -> None:
        self._sources = sources
        self._connect_timeout_s = connect_timeout_s
        self._peers = Peers(peer)
        self._silent: set[str] = set()

    async def connected(self, within_s: float | None, avoid: str = "") -> AsyncGenerator[Peer, None]:
        """The routers that connect: first choice first, then those that were silent lately, `avoid` last.

        `within_s` bounds each address's time as the connect timeout does; None: the connect timeout alone. Raises
        StokerError (UNAVAILABLE, UNREACHABLE) when none connects.
        """
        timeout_s = self._connect_timeout_s if within_s is None else min(self._connect_timeout_s, within_s)
        addresses = await self._known(timeout_s)
        await self._peers.tidy()
        any_reached = False
        for address in sorted(addresses, key=lambda each: (each == avoid, self._is_silent(each))):
            peer = self._peers.at(address)
            if await connects(peer.channel, timeout_s):
                self._silent.discard(address)
                any_reached = True
                yield peer
            else:
                self.lost(address)
                self._silent.add(address)
        if not any_reached:
            raise unreachable(*addresses or [str(source) for source in self._sources])

    def lost(self, address: str) -> None:
        """A call to this one broke, or it did not connect: whoever named it is asked again before the next call."""
        for source in self._sources:
            source.doubt(address)

    async def close(self) -> None:
        """Close every connection; what runs on them fails with CANCELLED."""
        await self._peers.close()
        for source in self._sources:
            await source.close()

    async def _known(self, timeout_s: float) -> list[str]:
        """What the sources name, each address once."""
        named = await asyncio.gather(*(source.addresses(timeout_s) for source in self._sources))
        return list(dict.fromkeys(address for addresses in named for address in addresses))

    def _is_silent(self, address: str) -> bool:
        """Whether it did not connect lately and still does not. Channels go on trying by themselves."""
        if address not in self._silent:
            return False
        return self._peers.at(address).channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY


async def connects(channel: grpc.aio.Channel, timeout_s: float) -> bool:
    """Whether the channel is, or becomes, connected. A refused connection says so at once, a silent host after
    `timeout_s`; either goes on being tried in the background, so that a later call finds it up again."""
    state = channel.get_state(try_to_connect=True)
    try:
        async with asyncio.timeout(timeout_s):
            while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError:
        return False
    return state is grpc.ChannelConnectivity.READY


def unreachable(*addresses: str) -> StokerError:
    """The error for addresses at which nothing answers."""
    return StokerError(
        Code.UNAVAILABLE,
        f"nothing answers at {', '.join(addresses)}: is the mesh up there? `stoker up` starts one here",
        reason="UNREACHABLE",
    )


def worth_another_address(error: StokerError) -> bool:
    """Whether another router may do what this one could not: it is gone, or it sees no server that can answer."""
    return error.code is Code.UNAVAILABLE
