"""The addresses a client knows, in the order it tries them, and what may be tried at the next one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import grpc

from stoker_client.errors import StokerError
from stoker_common.channel import client_options
from stoker_common.refusal import Code


class Addresses:
    """Channels to several addresses of one mesh, opened when first needed. Belongs to one event loop."""

    def __init__(self, addresses: Sequence[str], connect_timeout_s: float) -> None:
        if not addresses or not all(addresses):
            raise ValueError("a client needs at least one address, host:port")
        self._addresses = tuple(addresses)
        self._connect_timeout_s = connect_timeout_s
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def connected(self, within_s: float | None) -> AsyncGenerator[grpc.aio.Channel, None]:
        """The channels that connect, first address first. Raises StokerError (UNAVAILABLE) when none does.

        `within_s` bounds each address's time as the connect timeout does; None: the connect timeout alone.
        """
        timeout_s = self._connect_timeout_s if within_s is None else min(self._connect_timeout_s, within_s)
        silent: list[str] = []
        for address in self._addresses:
            channel = self._channel(address)
            if await _connects(channel, timeout_s):
                yield channel
            else:
                silent.append(address)
        if len(silent) == len(self._addresses):
            raise unreachable(*silent)

    async def close(self) -> None:
        """Close every channel; calls that run on them fail with CANCELLED."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=client_options())
        return self._channels[address]


async def _connects(channel: grpc.aio.Channel, timeout_s: float) -> bool:
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
