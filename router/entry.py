"""Where requests come in, by call or by link: checked, given an id, their deadline on this process's clock."""

import os
from collections.abc import AsyncGenerator

from opentelemetry.context import Context

from router.direct import Direct
from router.router import Router
from stoker.v1 import generation_pb2, router_pb2
from stoker_common.clock import Clock
from stoker_common.sink import Sink
from stoker_common.validate import check_generation


class Entry:
    """The router as its services see it."""

    def __init__(self, router: Router, direct: Direct, clock: Clock) -> None:
        self._router = router
        self._direct = direct
        self._clock = clock

    def generate(
        self,
        generation: generation_pb2.Generation,
        remaining_s: float | None,
        parent: Context,
        sink: Sink | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The answer's serialised parts. `remaining_s` is what the caller's deadline leaves, None without one. Output
        that comes while the next part is waited for goes to `sink` instead, as long as that has room.

        Raises Refusal, at once or while it is read. Closing it cancels the request.
        """
        deadline_s = self._checked(generation, remaining_s)
        return self._router.generate(generation, deadline_s, parent, sink)

    async def route(
        self, request: router_pb2.RouteRequest, remaining_s: float | None, parent: Context
    ) -> router_pb2.RouteResponse:
        """Where the client is to stream from. Raises Refusal."""
        deadline_s = self._checked(request.generation, remaining_s)
        return await self._direct.route(
            request.generation, request.servers_tried, request.servers_unreached, request.lost, deadline_s, parent
        )

    def release(self, request: router_pb2.ReleaseRequest) -> None:
        """A client gives back what was reserved for it."""
        self._direct.release(request.lost)

    def _checked(self, generation: generation_pb2.Generation, remaining_s: float | None) -> float | None:
        """The request's deadline by the clock; it has an id then. Raises Refusal."""
        check_generation(generation)
        if not generation.request_id:
            generation.request_id = os.urandom(16).hex()
        return None if remaining_s is None else self._clock() + remaining_s
