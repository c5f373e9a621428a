"""grpc.health.v1, a status for each service.

The health package's own asyncio servicer forgets its other watchers when one of them goes (all of a service share one
condition, and the first to leave deletes it), so routers that watch would miss that a server leaves.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from stoker_common.refusal import not_found
from stoker_common.wire import Context, Guard, parse, serialise, service, unary_unary

SERVICE = "grpc.health.v1.Health"
# What the protocol calls the server as a whole.
_WHOLE_SERVER = ""


class Health:
    """The statuses of this server's services, all alike: one engine is behind all of them."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services) | {_WHOLE_SERVER}
        self._serving = False
        self._changed = asyncio.Event()

    def set(self, *, serving: bool) -> None:
        """Tell everybody who watches, and whoever asks from now on."""
        if serving == self._serving:
            return
        self._serving = serving
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """The protocol's two methods."""
        return service(
            SERVICE,
            {
                "Check": unary_unary(self._check, health_pb2.HealthCheckRequest),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
            },
        )

    def _status(self, name: str) -> int:
        if name not in self._services:
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        return int(serving if self._serving else not_serving)

    async def _check(self, request: Any, _: Context) -> Any:
        if request.service not in self._services:
            names = ", ".join(sorted(name for name in self._services if name))
            raise not_found(f"there is no such service here; there are {names}", field="service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def _watch(self, data: bytes, context: Context) -> None:
        async with Guard(context, f"{SERVICE}/Watch"):
            name = parse(health_pb2.HealthCheckRequest, data).service
            told: int | None = None
            while True:
                changed = self._changed
                status = self._status(name)
                if status != told:
                    await context.write(serialise(health_pb2.HealthCheckResponse(status=status)))
                    told = status
                await changed.wait()
