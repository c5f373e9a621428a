"""What operators ask of this server: to leave."""

from collections.abc import Callable, Sized

import grpc

from discovery.endpoint import Endpoint
from stoker.v1 import operations_pb2
from stoker_common.refusal import invalid, not_found
from stoker_common.wire import Context, service, unary_unary

OPERATIONS = "stoker.v1.OperationsService"


class OperationsService:
    """stoker.v1.OperationsService of one server."""

    def __init__(
        self, endpoint: Callable[[], Endpoint], in_flight: Sized, drain: Callable[[float | None], None]
    ) -> None:
        self._endpoint = endpoint
        self._in_flight = in_flight
        self._drain = drain

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's methods."""
        return service(OPERATIONS, {"DrainServer": unary_unary(self._drain_server, operations_pb2.DrainServerRequest)})

    async def _drain_server(
        self, request: operations_pb2.DrainServerRequest, _: Context
    ) -> operations_pb2.DrainServerResponse:
        endpoint = self._endpoint()
        if request.server not in ("", endpoint.server):
            raise not_found(f"this is {endpoint.server}, not {request.server!r}; ask a router", field="server")
        grace_s = request.grace.ToNanoseconds() / 1e9 if request.HasField("grace") else None
        if grace_s is not None and grace_s < 0:
            raise invalid("grace", f"is {grace_s:g} s; give 0 or more")
        had = len(self._in_flight)
        self._drain(grace_s)
        return operations_pb2.DrainServerResponse(server=endpoint.server, zone=endpoint.zone, in_flight=had)
