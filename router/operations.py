"""What operators ask of servers, passed on to the server that is meant."""

import grpc

from router.attempt import Transport
from router.fleet import Fleet
from stoker.v1 import operations_pb2
from stoker_common import wire
from stoker_common.refusal import invalid, not_found
from stoker_common.wire import Context

# The server only has to hear it: leaving takes its own time.
_WITHIN_S = 5.0


class OperationsService:
    """`stoker.v1.OperationsService` for every server that the router sees."""

    def __init__(self, fleet: Fleet, transport: Transport) -> None:
        self._fleet = fleet
        self._transport = transport

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for `server.add_generic_rpc_handlers`."""
        method = wire.unary_unary(self._drain_server, operations_pb2.DrainServerRequest)
        return wire.service("stoker.v1.OperationsService", {"DrainServer": method})

    async def _drain_server(self, request: operations_pb2.DrainServerRequest, _: Context) -> wire.Response:
        if not request.server:
            raise invalid("server", "is missing; name one that `stoker status` shows")
        members = self._fleet.snapshot.members
        member = next((member for (server, _), member in members.items() if server == request.server), None)
        if member is None:
            known = ", ".join(sorted(server for server, _ in members)) or "none"
            raise not_found(f"{request.server!r} is no server; the servers are: {known}", field="server")
        grace_s = request.grace.ToNanoseconds() / 1e9 if request.HasField("grace") else None
        in_flight = await self._transport.drain(member.endpoint, grace_s, _WITHIN_S)
        return operations_pb2.DrainServerResponse(
            server=member.endpoint.server, zone=member.endpoint.zone, in_flight=in_flight
        )
