"""Reaches endpoints call by call: one gRPC call for each attempt, one channel for each address."""

from collections.abc import AsyncGenerator, Iterable

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from discovery.endpoint import Endpoint
from router.attempt import Metadata, Part
from router.errors import EndpointError, Fault
from router.ledger import Key
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common import status
from stoker_common.channel import client_options
from stoker_common.refusal import Code, Refusal

_METHOD = "/stoker.v1.InferenceService/GenerateStream"
_SERVICE = "stoker.v1.InferenceService"

# What a status says of its endpoint. What is not here is the server's fault.
_BUSY = frozenset({Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND})
_CALLER = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.UNIMPLEMENTED,
        Code.DEADLINE_EXCEEDED,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.ALREADY_EXISTS,
    }
)


class CallTransport:
    """A `Transport` that makes a call for each attempt."""

    def __init__(self) -> None:
        self._channels: dict[Key, grpc.aio.Channel] = {}
        self._calls: dict[Key, int] = {}
        self._kept: frozenset[Key] = frozenset()

    async def attempt(
        self, endpoint: Endpoint, generation: generation_pb2.Generation, timeout_s: float | None, metadata: Metadata
    ) -> AsyncGenerator[Part, None]:
        """See `Transport`."""
        key = (endpoint.server, endpoint.epoch)
        channel = self._channel(key, endpoint.address)
        request = inference_pb2.GenerateStreamRequest(generation=generation).SerializeToString()
        self._calls[key] = self._calls.get(key, 0) + 1
        # No serialisers: bytes go out and come in as they are.
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(_METHOD)
        call = method(request, timeout=timeout_s, metadata=grpc.aio.Metadata(*metadata))
        try:
            async for data in call:
                yield Part(data, inference_pb2.GenerateStreamResponse.FromString(data))
        except grpc.aio.AioRpcError as error:
            raise _endpoint_error(error, endpoint, channel.get_state()) from error
        finally:
            call.cancel()  # an abandoned call goes on by itself (grpc/grpc #43462)
            self._calls[key] -= 1
            await self._close_unused(key)

    async def answers(self, endpoint: Endpoint, timeout_s: float) -> bool:
        """See `Transport`. By grpc.health.v1 on the channel that requests use."""
        key = (endpoint.server, endpoint.epoch)
        health = health_pb2_grpc.HealthStub(self._channel(key, endpoint.address))
        request = health_pb2.HealthCheckRequest(service=_SERVICE)
        try:
            response = await health.Check(request, timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def keep(self, keys: Iterable[Key]) -> None:
        """See `Transport`. Closing waits for `sweep` or for the last call to end."""
        self._kept = frozenset(keys)

    async def sweep(self) -> None:
        """Close the channels of endpoints that are gone and on which nothing runs."""
        for key in [key for key in self._channels if key not in self._kept]:
            await self._close_unused(key)

    async def close(self) -> None:
        """See `Transport`."""
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()

    def _channel(self, key: Key, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = grpc.aio.insecure_channel(
                address, options=client_options(ping_when_idle=True)
            )
        return channel

    async def _close_unused(self, key: Key) -> None:
        if key not in self._kept and not self._calls.get(key):
            self._calls.pop(key, None)
            channel = self._channels.pop(key, None)
            if channel is not None:
                await channel.close()


def _endpoint_error(error: grpc.aio.AioRpcError, endpoint: Endpoint, state: grpc.ChannelConnectivity) -> EndpointError:
    refusal = status.from_rpc_error(error)
    where = f"server {endpoint.server} at {endpoint.address} in {endpoint.zone}"
    if refusal.code in _CALLER:
        return EndpointError(Fault.CALLER, refusal)
    if refusal.code in _BUSY or refusal.reason == "SERVER_DRAINING":
        return EndpointError(Fault.BUSY, refusal)
    # A connection that cannot be made says so by the channel's state; one that broke is IDLE until the next call.
    cut = state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.CONNECTING)
    fault = Fault.LINK if refusal.code is Code.UNAVAILABLE and cut else Fault.SERVER
    return EndpointError(
        fault,
        Refusal(
            Code.UNAVAILABLE,
            reason="SERVER_FAILED",
            message=f"{where} failed: {refusal.code.name}: {refusal.message}",
            retry_after_s=refusal.retry_after_s,
        ),
    )
