"""The routers that a client knows, their channels, and the order in which it tries them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import grpc

from stoker.v1 import generation_pb2, inference_pb2, inference_pb2_grpc
from stoker_client.call import Metadata, raising_stoker_error
from stoker_client.errors import StokerError
from stoker_client.sources import Source
from stoker_common.channel import client_options
from stoker_common.refusal import Code


@dataclass(frozen=True, slots=True)
class Reached:
    """A router to which there is a connection."""

    address: str
    channel: grpc.aio.Channel

    async def stream(
        self, generation: generation_pb2.Generation, metadata: Metadata, timeout_s: float | None
    ) -> AsyncGenerator[inference_pb2.GenerateStreamResponse, None]:
        """The parts of its answer. Raises StokerError; closing it cancels the call."""
        request = inference_pb2.GenerateStreamRequest(generation=generation)
        call = inference_pb2_grpc.InferenceServiceStub(self.channel).GenerateStream(
            request, metadata=metadata, timeout=timeout_s
        )
        try:
            with raising_stoker_error():
                async for part in call:
                    yield part
        finally:
            # An abandoned call runs on: grpc does not cancel it by itself.
            call.cancel()


class Addresses:
    """Channels to the routers of one mesh, opened when first needed. Belongs to one event loop."""

    def __init__(self, sources: Sequence[Source], connect_timeout_s: float) -> None:
        self._sources = sources
        self._connect_timeout_s = connect_timeout_s
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._silent: set[str] = set()

    async def connected(self, within_s: float | None, avoid: str = "") -> AsyncGenerator[Reached, None]:
        """The routers that connect: first choice first, then those that were silent lately, `avoid` last.

        `within_s` bounds each address's time as the connect timeout does; None: the connect timeout alone. Raises
        StokerError (UNAVAILABLE, UNREACHABLE) when none connects.
        """
        timeout_s = self._connect_timeout_s if within_s is None else min(self._connect_timeout_s, within_s)
        addresses = await self._known(timeout_s)
        any_reached = False
        for address in sorted(addresses, key=lambda each: (each == avoid, self._is_silent(each))):
            channel = self._channel(address)
            if await _connects(channel, timeout_s):
                self._silent.discard(address)
                any_reached = True
                yield Reached(address, channel)
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
        """Close every channel; calls that run on them fail with CANCELLED."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()
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
        return self._channel(address).get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY

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
