"""The server: its ports, its services, its connections, its end. What grpc.aio's is, in the clear."""

import asyncio
import logging
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from stoker_common.clock import Clock
from stoker_common.http2 import fields, sockets
from stoker_common.http2.bounds import Bounds
from stoker_common.http2.call import Call
from stoker_common.http2.frames import ErrorCode
from stoker_common.http2.limits import Limits
from stoker_common.http2.messages import KNOWN_ENCODINGS
from stoker_common.http2.pacer import Pacer
from stoker_common.http2.request import Request
from stoker_common.http2.server_connection import ServerConnection
from stoker_common.http2.server_stream import Served, ServerStream
from stoker_common.refusal import Code

log = logging.getLogger(__name__)

# How long a connection that was closed may take to send the rest.
_CLOSE_WITHIN_S = 1.0


@dataclass(slots=True)
class _Details(grpc.HandlerCallDetails):
    """What generic handlers are asked with."""

    method: str
    invocation_metadata: Any


class Http2Server(grpc.aio.Server):
    """Used as grpc.aio's. Make and use it on one event loop."""

    def __init__(
        self, limits: Limits | None = None, *, share_port: bool = False, clock: Clock = time.monotonic
    ) -> None:
        """`share_port`: other processes may listen on the same port (SO_REUSEPORT). `clock` is the log's."""
        self._limits = limits or Limits()
        self.bounds = Bounds(self._limits, clock)
        self._share_port = share_port
        self._generic: list[grpc.GenericRpcHandler] = []
        self._registered: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._sockets: list[socket.socket] = []
        self._listeners: list[asyncio.Server] = []
        self._pacer: Pacer | None = None
        # One thread, which there is when there is something to unpack: it takes no more than a core, whoever sends it.
        self._unpacking = ThreadPoolExecutor(1, "unpacking")
        self._connections: set[ServerConnection] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._stop_now = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stopping = False

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """See grpc.aio.Server."""
        self._generic.extend(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: "Mapping[str, grpc.RpcMethodHandler[Any, Any]]"
    ) -> None:
        """See grpc.aio.Server."""
        for name, handler in method_handlers.items():
            self._registered[f"/{service_name}/{name}"] = handler

    def add_insecure_port(self, address: str) -> int:
        """Listen at `host:port`; the port. Raises RuntimeError, as gRPC does, where that cannot be."""
        try:
            made = sockets.listen(address, share_port=self._share_port)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"failed to bind to address {address}: {error}") from error
        self._sockets.extend(made)
        return int(made[0].getsockname()[1])

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """See grpc.aio.Server. Not here."""
        raise NotImplementedError("connections are in the clear; serve TLS by grpc's server, or behind a proxy")

    async def start(self) -> None:
        """See grpc.aio.Server."""
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            self._listeners.append(
                await loop.create_server(lambda: self.protocol(loop), sock=each, backlog=sockets.BACKLOG)
            )
        self._sockets = []

    async def stop(self, grace: float | None) -> None:
        """See grpc.aio.Server: take nothing new at once, let what runs end within `grace` seconds, cancel the rest and
        wait for its handlers. A second call may shorten the first one's grace."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        sockets.close(self._sockets)
        self._sockets = []
        if not self._stopping:
            self._stopping = True
            for connection in list(self._connections):
                connection.leave()
        if grace:
            await _first((self._quiet, self._stop_now), grace)
        self._stop_now.set()
        for connection in list(self._connections):
            connection.close()
        await _first((self._quiet,), _CLOSE_WITHIN_S)
        for connection in list(self._connections):
            connection.abort()
        # Handlers may take their time to end, as with gRPC.
        await self._quiet.wait()
        self._unpacking.shutdown(wait=False)
        self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """See grpc.aio.Server: whether the time was up first."""
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    @property
    def streams(self) -> int:
        """Streams that are not over, or whose handlers still run."""
        return sum(len(connection.streams) for connection in self._connections)

    def protocol(self, loop: asyncio.AbstractEventLoop) -> asyncio.Protocol:
        """What speaks on a connection that was accepted."""
        return ServerConnection(self._begin, self._limits, self.bounds, loop, self._made, self._lost)

    def _made(self, connection: ServerConnection) -> None:
        if self._stopping:
            # Accepted while the listener closed.
            connection.close()
            return
        if not self.bounds.admits(connection.peer):
            connection.close(ErrorCode.ENHANCE_YOUR_CALM, "the server has as many connections as it takes")
            return
        self._connections.add(connection)
        self.bounds.connections = len(self._connections)
        self._quiet.clear()

    def _lost(self, connection: ServerConnection) -> None:
        self._connections.discard(connection)
        self.bounds.connections = len(self._connections)
        if not self._connections:
            self._quiet.set()

    def _begin(self, connection: ServerConnection, stream: ServerStream, request: Request) -> Served | None:
        handler = self._registered.get(request.path) or self._found(request)
        if handler is None:
            stream.finish(fields.status(Code.UNIMPLEMENTED.value, "Method not found!"))
            return None
        if request.encoding != "identity" and not self._limits.compressed:
            text = f"messages compressed with {request.encoding!r} are not read here; send them as they are"
            stream.finish(fields.status(Code.UNIMPLEMENTED.value, text) + fields.ACCEPT_IDENTITY)
            return None
        if request.encoding not in KNOWN_ENCODINGS:
            text = f"messages compressed with {request.encoding!r} are not read here; {fields.ENCODINGS} are"
            stream.finish(fields.status(Code.UNIMPLEMENTED.value, text) + fields.ACCEPT_ENCODING)
            return None
        loop = asyncio.get_running_loop()
        if self._pacer is None:
            self._pacer = Pacer(loop, self._limits.message_s)
        call = Call(
            stream, request, handler, connection, loop, self._pacer, self._unpacking, self._limits.response_bytes
        )
        if handler.request_streaming:
            call.begin()
        return call

    def _found(self, request: Request) -> "grpc.RpcMethodHandler[Any, Any] | None":
        details = _Details(request.path, request.metadata)
        for generic in self._generic:
            handler = generic.service(details)
            if handler is not None:
                return handler
        return None


async def _first(events: Iterable[asyncio.Event], within_s: float) -> None:
    """Wait until one of them is set, at most so long."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
