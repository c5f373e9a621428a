"""The gRPC server: its port, its handlers, its end."""

import asyncio
import logging
from collections.abc import Sequence

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry

from stoker_common.channel import Http2
from stoker_common.servers import reflect, server

log = logging.getLogger(__name__)

# A predecessor that is being stopped lets go of its port when its last connections close.
_BIND_WITHIN_S = 5.0
_BIND_EVERY_S = 0.1


class PortTaken(Exception):
    """The port to listen on cannot be had."""


class Listener:
    """One gRPC server on one port. `port` is the real one once it is started."""

    def __init__(self, host: str, port: int, http2: Http2, registry: CollectorRegistry | None = None) -> None:
        """`registry`: where the server shows its connections."""
        self._http2 = http2
        self._registry = registry
        self._host = host
        self.port = port
        self._server: grpc.aio.Server | None = None

    async def start(self, handlers: Sequence[grpc.GenericRpcHandler], reflected: Sequence[str] = ()) -> None:
        """Bind, for as long as a predecessor may take to let go, and serve. Raises PortTaken.

        `reflected`: the services that reflection tells of; none switches it off.
        """
        serving = server(self._http2, registry=self._registry)
        serving.add_generic_rpc_handlers(tuple(handlers))
        if reflected:
            reflect(serving, reflected)
        self.port = await self._bind(serving)
        await serving.start()
        self._server = serving
        log.info("listening", extra={"host": self._host, "port": self.port})

    async def _bind(self, serving: grpc.aio.Server) -> int:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _BIND_WITHIN_S
        # IPv6 addresses stand in brackets before a port.
        address = f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"
        while True:
            try:
                return int(serving.add_insecure_port(address))
            except RuntimeError as error:
                if loop.time() >= give_up_at:
                    raise PortTaken(
                        f"cannot listen on {address}: port {self.port} stayed taken for {_BIND_WITHIN_S:g} s, or the "
                        f"host is not this machine's; stop who holds it (`ss -ltnp 'sport = :{self.port}'`), or give "
                        "another --listen-port or --listen-host"
                    ) from error
                await asyncio.sleep(_BIND_EVERY_S)

    async def stop(self, grace_s: float) -> None:
        """Stop listening, give running calls `grace_s`, cancel the rest and wait for their handlers. Idempotent."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
