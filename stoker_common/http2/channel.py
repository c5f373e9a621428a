"""A channel over an HTTP/2 of our own: what stubs are made of, and calls of them. What grpc.aio's is, in the clear."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Never, Self

import grpc
import grpc.aio

from stoker_common.backoff import Backoff
from stoker_common.http2 import fields, target
from stoker_common.http2.bounds import Bounds
from stoker_common.http2.client_calls import StreamStreamCall, UnaryCall, UnaryStreamCall
from stoker_common.http2.dialer import Connect, Dialer, State
from stoker_common.http2.limits import Limits, client_limits

# As gRPC's channels are told: a server that restarts on its port is reached again within a second.
_RETRY_FIRST_S, _RETRY_MOST_S = 0.1, 1.0

Serialise = Callable[[Any], bytes] | None
Deserialise = Callable[[bytes], Any] | None


async def connect(speaks: Callable[[], asyncio.Protocol], address: tuple[str, int]) -> object:
    """A TCP connection."""
    return await asyncio.get_running_loop().create_connection(speaks, *address)


class Http2Channel(grpc.aio.Channel):
    """Used as grpc.aio's, on one event loop. Calls that begin while it is not connected wait for its connection."""

    def __init__(
        self,
        address: str,
        limits: Limits | None = None,
        *,
        rng: random.Random | None = None,
        connect: Connect = connect,
    ) -> None:
        """`rng` spreads attempts to connect, which `connect` makes. Raises ValueError for an address that is not
        `host:port`, or one of gRPC's forms of it."""
        self._limits = limits or client_limits()
        self._dialer = Dialer(
            target.target(address),
            self._limits,
            Bounds(self._limits, time.monotonic, "client"),
            Backoff(rng or random.Random(), _RETRY_FIRST_S, _RETRY_MOST_S),
            connect,
        )

    async def __aenter__(self) -> Self:
        """See grpc.aio.Channel."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """See grpc.aio.Channel."""
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """See grpc.aio.Channel: what has not ended within `grace` seconds is cancelled."""
        if self._dialer.state is not State.SHUTDOWN:
            await self._dialer.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel."""
        state = self._dialer.state
        if try_to_connect and state is State.IDLE:
            self._dialer.connect()
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel."""
        await self._dialer.change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel."""
        while (state := self.get_state(try_to_connect=True)) is not State.READY:
            await self._dialer.change(state)

    def unary_unary(
        self,
        method: str,
        request_serializer: Serialise = None,
        response_deserializer: Deserialise = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """See grpc.aio.Channel."""
        return _UnaryUnary(self._dialer, self._limits, method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Serialise = None,
        response_deserializer: Deserialise = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """See grpc.aio.Channel."""
        return _UnaryStream(self._dialer, self._limits, method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Serialise = None,
        response_deserializer: Deserialise = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """See grpc.aio.Channel. Stubs ask for all of a service's methods; such a one cannot be called."""
        return _not_here

    def stream_stream(
        self,
        method: str,
        request_serializer: Serialise = None,
        response_deserializer: Deserialise = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """See grpc.aio.Channel."""
        return _StreamStream(self._dialer, self._limits, method, request_serializer, response_deserializer)


class _Method:
    def __init__(
        self, dialer: Dialer, limits: Limits, path: str, serialise: Serialise, deserialise: Deserialise
    ) -> None:
        self._dialer = dialer
        self._limits = limits
        self._path = path
        self._serialise = serialise
        self._deserialise = deserialise

    def _how(
        self, request: Any, timeout: float | None, metadata: Any, credentials: object, wait_for_ready: bool | None
    ) -> tuple[Any, ...]:
        if credentials is not None:
            raise grpc.aio.UsageError("connections are in the clear, and carry no credentials; use gRPC's channel")
        if self._dialer.shuts:
            raise grpc.aio.UsageError("Channel is closed.")
        own = fields.encoded(metadata) if metadata else b""
        first = request if request is None or self._serialise is None else self._serialise(request)
        patient = bool(wait_for_ready)
        return self._dialer, self._limits, self._path, own, timeout, patient, self._deserialise, first


class _UnaryUnary(_Method, grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> UnaryCall:
        return UnaryCall(*self._how(request, timeout, metadata, credentials, wait_for_ready))


class _UnaryStream(_Method, grpc.aio.UnaryStreamMultiCallable[Any, Any]):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> UnaryStreamCall:
        return UnaryStreamCall(*self._how(request, timeout, metadata, credentials, wait_for_ready))


class _StreamStream(_Method, grpc.aio.StreamStreamMultiCallable[Any, Any]):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> StreamStreamCall:
        if request_iterator is not None:
            raise NotImplementedError("write messages; none are taken from an iterator here")
        return StreamStreamCall(self._serialise, *self._how(None, timeout, metadata, credentials, wait_for_ready))


def _not_here(*_: object, **__: object) -> Never:
    raise NotImplementedError("calls that send a stream and get one answer are not made here; use gRPC's channel")
