"""Reaches endpoints call by call: one gRPC call for each attempt, one channel for each address."""

import asyncio
from collections.abc import AsyncGenerator, Iterable

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from discovery.endpoint import Endpoint, Residency
from discovery.messages import seconds
from router.attempt import Attempt, OnDigest, OnDirect, OnLink, OnLoad, Part
from router.errors import EndpointError, Fault, endpoint_error
from router.ledger import Key
from stoker.v1 import (
    endpoint_pb2,
    inference_pb2,
    model_pb2,
    model_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from stoker_common import channels, status
from stoker_common.channel import MAX_REQUEST_BYTES, Http2
from stoker_common.refusal import exhausted

_METHOD = "/stoker.v1.InferenceService/GenerateStream"
_SERVICE = "stoker.v1.InferenceService"


class CallTransport:
    """A `Transport` that makes a call for each attempt."""

    def __init__(self, http2: Http2 = "grpc") -> None:
        """`http2`: whose HTTP/2 reaches endpoints."""
        self._http2 = http2
        self._channels: dict[Key, grpc.aio.Channel] = {}
        self._calls: dict[Key, int] = {}
        self._kept: frozenset[Key] = frozenset()
        self._changed = asyncio.Event()

    async def attempt(self, attempt: Attempt) -> AsyncGenerator[Part, None]:
        """See `Transport`."""
        endpoint, interrupt = attempt.endpoint, attempt.interrupt
        key = (endpoint.server, endpoint.epoch)
        channel = self.channel(key, endpoint.address)
        request = inference_pb2.GenerateStreamRequest(generation=attempt.generation).SerializeToString()
        if len(request) > MAX_REQUEST_BYTES:
            text = f"the request has {len(request)} bytes, and {MAX_REQUEST_BYTES} fit into a message; send less"
            raise EndpointError(Fault.CALLER, exhausted(text, reason="REQUEST_TOO_LARGE"))
        self._calls[key] = self._calls.get(key, 0) + 1
        # No serialisers: bytes go out and come in as they are.
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(_METHOD)
        call = method(request, timeout=attempt.timeout_s, metadata=grpc.aio.Metadata(*attempt.metadata))
        interrupt.bind(lambda error: _cancel(call))
        try:
            async for data in call:
                yield Part(data, inference_pb2.GenerateStreamResponse.FromString(data))
        except asyncio.CancelledError:
            # gRPC raises it here, too, when the call was cancelled: then it is not this task that is.
            if interrupt.error is None:
                raise
            raise interrupt.error from None
        except grpc.aio.AioRpcError as error:
            refusal = status.from_rpc_error(error)
            raise endpoint_error(refusal, endpoint, cut=_cut(channel.get_state())) from error
        finally:
            call.cancel()  # an abandoned call goes on by itself (grpc/grpc #43462)
            self._calls[key] -= 1
            await self._close_unused(key)

    async def drain(self, endpoint: Endpoint, grace_s: float | None, timeout_s: float) -> int:
        """See `Transport`."""
        request = operations_pb2.DrainServerRequest(server=endpoint.server)
        if grace_s is not None:
            request.grace.CopyFrom(seconds(grace_s))
        stub = operations_pb2_grpc.OperationsServiceStub(
            self.channel((endpoint.server, endpoint.epoch), endpoint.address)
        )
        try:
            response = await stub.DrainServer(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from error
        return response.in_flight

    async def ready(self, endpoint: Endpoint, model: str) -> AsyncGenerator[model_pb2.ModelProgress, None]:
        """See `Transport`."""
        request = model_pb2.LoadModelRequest(target=model_pb2.ModelTarget(model=model))
        call = self._models(endpoint).LoadModel(request)
        try:
            async for response in call:
                yield response.progress
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from error
        finally:
            call.cancel()  # an abandoned call goes on by itself (grpc/grpc #43462)

    async def put_away(
        self, endpoint: Endpoint, model: str, to: Residency, grace_s: float | None
    ) -> endpoint_pb2.Model:
        """See `Transport`."""
        target, stub = model_pb2.ModelTarget(model=model), self._models(endpoint)
        grace = None if grace_s is None else seconds(grace_s)
        try:
            if to is Residency.ASLEEP:
                return (await stub.SleepModel(model_pb2.SleepModelRequest(target=target, grace=grace))).model
            return (await stub.UnloadModel(model_pb2.UnloadModelRequest(target=target, grace=grace))).model
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from error

    async def answers(self, endpoint: Endpoint, timeout_s: float) -> bool:
        """See `Transport`. By grpc.health.v1 on the channel that requests use."""
        key = (endpoint.server, endpoint.epoch)
        health = health_pb2_grpc.HealthStub(self.channel(key, endpoint.address))
        request = health_pb2.HealthCheckRequest(service=_SERVICE)
        try:
            response = await health.Check(request, timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def keep(self, endpoints: Iterable[Endpoint]) -> None:
        """See `Transport`."""
        self._kept = frozenset((endpoint.server, endpoint.epoch) for endpoint in endpoints)
        self._changed.set()

    async def reached(self, within_s: float) -> None:
        """See `Transport`. Calls bring loads with their answers."""

    async def run(self) -> None:
        """See `Transport`: closes the channels of endpoints that are gone and on which nothing runs."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for key in [key for key in self._channels if key not in self._kept]:
                await self._close_unused(key)

    def listen(self, on_load: OnLoad, on_link: OnLink, on_digest: OnDigest) -> None:
        """See `Transport`. Calls bring loads with their answers, and there are no links."""

    def hear(self, on_direct: OnDirect) -> None:
        """See `Transport`. Without links, nobody says."""

    def want(self, endpoint: Endpoint) -> None:
        """See `Transport`."""

    def move(self, endpoint: Endpoint, reservation: bytes, why: str) -> None:
        """See `Transport`. Without links, nobody is told."""

    async def close(self) -> None:
        """See `Transport`."""
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()

    def channel(self, key: Key, address: str) -> grpc.aio.Channel:
        """The endpoint's channel, made on first use."""
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = channels.channel(self._http2, address, ping_when_idle=True)
        return channel

    def _models(self, endpoint: Endpoint) -> model_pb2_grpc.ModelServiceStub:
        channel = self.channel((endpoint.server, endpoint.epoch), endpoint.address)
        return model_pb2_grpc.ModelServiceStub(channel)

    async def _close_unused(self, key: Key) -> None:
        if key not in self._kept and not self._calls.get(key):
            self._calls.pop(key, None)
            channel = self._channels.pop(key, None)
            if channel is not None:
                await channel.close()


def _cancel(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> None:
    call.cancel()


def _cut(state: grpc.ChannelConnectivity) -> bool:
    """Whether a channel in this state cannot connect. One whose connection broke is IDLE until the next call."""
    return state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.CONNECTING)
