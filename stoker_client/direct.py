"""Direct mode: each router is asked for a server, and the answer comes from the server itself.

To the loop that takes an answer from router to router (`relay.py`) this is one more way to ask a router. When a server
is lost the same router is asked for the next one; when that is lost, which the stream does not notice, another one is.
"""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from enum import Enum
from typing import Protocol

from stoker.v1 import generation_pb2, inference_pb2, router_pb2
from stoker_client.call import Deadline, Metadata
from stoker_client.errors import StokerError
from stoker_client.relay import Router
from stoker_client.servers import Servers
from stoker_client.story import Part
from stoker_common.refusal import Code
from stoker_common.tickets import METADATA_KEY

# The caller's own, on whatever server.
_CALLER = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.UNIMPLEMENTED,
        Code.DEADLINE_EXCEEDED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.ALREADY_EXISTS,
    }
)
# Servers that one router is asked for in a row, beside those that do not connect; then another router, or a pause.
_IN_A_ROW = 4
_RELEASE_S = 1.0


class Mode(Enum):
    """How answers come."""

    # From servers where that works, else through routers.
    AUTO = "auto"
    DIRECT = "direct"
    RELAY = "relay"


class Routing(Router, Protocol):
    """A router that can be asked for a server."""

    async def route(
        self, request: router_pb2.RouteRequest, metadata: Metadata, timeout_s: float | None
    ) -> router_pb2.RouteResponse:
        """A server, reserved. Raises StokerError."""

    async def release(self, request: router_pb2.ReleaseRequest, timeout_s: float) -> None:
        """Give a reservation back. Raises StokerError."""


class RoutingRouters(Protocol):
    """The routers that a client may ask."""

    def connected(self, within_s: float | None, avoid: str = "") -> AsyncGenerator[Routing, None]:
        """See `Routers`."""

    def lost(self, address: str) -> None:
        """See `Routers`."""


class DirectRouters:
    """`Routers` for one answer: what was tried for it is remembered here."""

    def __init__(self, routers: RoutingRouters, servers: Servers, mode: Mode) -> None:
        self._routers = routers
        self._servers = servers
        self.mode = mode
        self.tried: list[str] = []
        # Of them, those that did not connect: a request that never got there was no attempt.
        self.unreached: list[str] = []
        # What the next router asked is told of.
        self.lost_streams: list[router_pb2.LostStream] = []
        self._server_broke = False
        self._asked_in_a_row = 0

    async def connected(self, within_s: float | None, avoid: str = "") -> AsyncGenerator["DirectWay", None]:
        """See `Routers`. A router whose server broke is given again, to be asked for another."""
        avoid = "" if self._server_broke else avoid
        async with aclosing(self._routers.connected(within_s, avoid)) as reached:
            async for router in reached:
                way = DirectWay(router, self._servers, self)
                self._asked_in_a_row = 0
                while self._asked_in_a_row < _IN_A_ROW:
                    self._server_broke = False
                    yield way
                    if not self._server_broke:
                        break

    def lost(self, address: str) -> None:
        """See `Routers`."""
        if not self._server_broke:
            self._routers.lost(address)

    def server_broke(self, routed: router_pb2.RouteResponse, error: StokerError, *, unreachable: bool) -> None:
        """The server that was routed to came to nothing."""
        self._server_broke = True
        new = routed.server not in self.tried
        if new:
            self.tried.append(routed.server)
        if unreachable and new:
            self.unreached.append(routed.server)
        else:
            self._asked_in_a_row += 1
        self.lost_streams.append(_lost(routed, error, unreachable=unreachable))


class DirectWay:
    """A router that is asked for servers: a `Router`."""

    def __init__(self, router: Routing, servers: Servers, asked: DirectRouters) -> None:
        self._router = router
        self._servers = servers
        self._asked = asked
        self._routed: router_pb2.RouteResponse | None = None
        self.address = router.address

    @property
    def who(self) -> str:
        """See `Router`."""
        return self._router.who if self._routed is None else f"server {self._routed.server} at {self._routed.address}"

    @property
    def server(self) -> inference_pb2.Started | None:
        """See `Router`."""
        routed = self._routed
        if routed is None:
            return None
        return inference_pb2.Started(server=routed.server, zone=routed.zone, epoch=routed.epoch)

    async def stream(
        self, generation: generation_pb2.Generation, metadata: Metadata, timeout_s: float | None
    ) -> AsyncGenerator[Part, None]:
        """See `Router`."""
        deadline = Deadline(timeout_s)
        self._routed = None
        if not generation.request_id:
            # The router's log and the server's then speak of one request, whoever answers.
            generation.request_id = uuid.uuid4().hex
        auto = self._asked.mode is Mode.AUTO
        if not auto or self._servers.worth_trying:
            async with aclosing(self._direct(generation, metadata, deadline)) as parts:
                began = False
                try:
                    async for part in parts:
                        began = True
                        yield part
                    return
                except _NoWay as failed:
                    if began or not auto:
                        raise failed.error from failed
                    self._routed = None
                    self._servers.give_up()
        async with aclosing(self._router.stream(generation, metadata, deadline.left_s())) as parts:
            async for part in parts:
                yield part

    async def _direct(
        self, generation: generation_pb2.Generation, metadata: Metadata, deadline: Deadline
    ) -> AsyncGenerator[Part, None]:
        """The parts of the answer from a server. Raises StokerError, and _NoWay where servers cannot be asked."""
        routed = await self._route(generation, metadata, deadline)
        self._routed = routed
        peer = await self._servers.connected(routed.address, deadline.left_s())
        if peer is None:
            message = f"server {routed.server} at {routed.address} does not connect"
            error = StokerError(Code.UNAVAILABLE, message, reason="SERVER_UNREACHABLE")
            if self._asked.mode is Mode.AUTO and not self._servers.was_reached(routed.address):
                await self._give_back(routed, error)
                raise _NoWay(error)
            self._asked.server_broke(routed, error, unreachable=True)
            raise error
        asked = generation_pb2.Generation()
        asked.CopyFrom(generation)
        asked.request_id = routed.request_id
        if routed.resume_mode:
            asked.resume.mode = routed.resume_mode
        ticket: Metadata = ((METADATA_KEY, routed.ticket),)
        try:
            async with aclosing(peer.stream(asked, metadata + ticket, deadline.left_s())) as parts:
                finished = False
                async for part in parts:
                    if part.HasField("started"):
                        part.started.pick.CopyFrom(routed.pick)
                    finished = finished or part.HasField("finished")
                    yield part
            if not finished:
                raise StokerError(Code.UNAVAILABLE, "the stream ended without its last part")
        except StokerError as error:
            raise await self._told(routed, error) from error

    async def _route(
        self, generation: generation_pb2.Generation, metadata: Metadata, deadline: Deadline
    ) -> router_pb2.RouteResponse:
        asked = self._asked
        request = router_pb2.RouteRequest(
            generation=generation,
            servers_tried=asked.tried,
            servers_unreached=asked.unreached,
            lost=asked.lost_streams,
        )
        try:
            routed = await self._router.route(request, metadata, deadline.left_s())
        except StokerError as error:
            if error.code is Code.UNIMPLEMENTED and not error.field:
                raise _NoWay(error) from error  # a router of before
            raise
        asked.lost_streams = []
        return routed

    async def _give_back(self, routed: router_pb2.RouteResponse, error: StokerError) -> None:
        lost = _lost(routed, error, unreachable=True)
        try:
            await self._router.release(router_pb2.ReleaseRequest(lost=lost), _RELEASE_S)
        except StokerError:
            return  # it ends by itself

    async def _told(self, routed: router_pb2.RouteResponse, error: StokerError) -> Exception:
        """What a failure of the stream's is to the loop: the caller's own, or a server that is to be replaced."""
        if error.code in _CALLER or error.reason in ("CLIENT_CLOSED", "CLIENT_TOO_SLOW"):
            return error
        if error.reason in ("TICKET_EXPIRED", "TICKET_INVALID"):
            # Clocks or keys differ: no other server would do better, and the relay does not depend on them. The server
            # that said so is none the worse.
            await self._give_back(routed, error)
            return _NoWay(error)
        self._asked.server_broke(routed, error, unreachable=False)
        lost = error.reason == error.code.name
        where = f"server {routed.server} at {routed.address} in {routed.zone}"
        return StokerError(
            Code.UNAVAILABLE,
            f"{where} was lost: {error.message}" if lost else error.message,
            reason="SERVER_LOST" if lost else error.reason,
            retry_after_s=error.retry_after_s,
        )


def _lost(routed: router_pb2.RouteResponse, error: StokerError, *, unreachable: bool) -> router_pb2.LostStream:
    """A reservation that came to nothing, as its router is told."""
    lost = router_pb2.LostStream(
        reservation=routed.reservation,
        code=error.code.value,
        message=error.message[:500],
        unreachable=unreachable,
        reason="" if error.reason == error.code.name else error.reason,
    )
    if error.retry_after_s is not None:
        lost.retry_after.FromNanoseconds(round(error.retry_after_s * 1e9))
    return lost


class _NoWay(Exception):
    """Servers cannot be asked from here; routers relay."""

    def __init__(self, error: StokerError) -> None:
        super().__init__(error.message)
        self.error = error
