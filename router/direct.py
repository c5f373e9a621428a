"""Off the path of tokens: picks and reserves as for a relayed request, and tells the client where to stream from."""

import secrets
from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from discovery.endpoint import Endpoint
from router.accounting import failed, over
from router.dispatch import Dispatch
from router.errors import EndpointError
from router.flight import Flight
from router.learned import Learned
from router.metrics import RouterMetrics
from router.reservations import Reservation, Reservations
from router.router import Router
from stoker.v1 import endpoint_pb2, generation_pb2, router_pb2
from stoker.v1.ticket_pb2 import Claims
from stoker_common.clock import Clock
from stoker_common.tickets import TicketKeys, output_tokens
from stoker_common.tracing import Tracing

# What a request may grow by on its way: its id, the mode of resuming, servers tried.
_ROOM_BYTES = 1024


class Tickets:
    """Writes this router's tickets. `wall_clock` is Unix time in seconds."""

    def __init__(self, keys: TicketKeys, router: str, wall_clock: Clock, ticket_s: float) -> None:
        self._keys = keys
        self._router = router
        self._wall_clock = wall_clock
        self.ticket_s = ticket_s

    def own(self, generation: generation_pb2.Generation, endpoint: Endpoint) -> bytes:
        """For a request that this router sends itself; empty without a key.

        It does not end: it goes no further than the wire between them, and clocks that differ must not stop the relay.
        """
        return self._keys.ticket(self._claims(generation, endpoint)) if self._keys else b""

    def client(
        self, generation: generation_pb2.Generation, endpoint: Endpoint, reservation: bytes
    ) -> tuple[bytes, float]:
        """For a client, and when it ends: Unix time in seconds."""
        claims, ends_s = self._claims(generation, endpoint), self._wall_clock() + self.ticket_s
        claims.reservation = reservation
        claims.max_output_tokens = max(0, output_tokens(generation))
        claims.max_request_bytes = generation.ByteSize() + _ROOM_BYTES
        claims.expires_at.FromNanoseconds(int(ends_s * 1e9))
        return self._keys.ticket(claims), ends_s

    def _claims(self, generation: generation_pb2.Generation, endpoint: Endpoint) -> Claims:
        return Claims(
            router=self._router,
            server=endpoint.server,
            epoch=endpoint.epoch,
            tenant=generation.tenant.id,
            model=generation.model,
            request_id=generation.request_id,
        )


class Direct:
    """`Route` and `Release`. Belongs to one event loop."""

    def __init__(
        self,
        router: Router,
        learned: Learned,
        reservations: Reservations,
        tickets: Tickets,
        metrics: RouterMetrics,
        traces: Tracing,
        clock: Clock,
        new_id: Callable[[], bytes] = lambda: secrets.token_bytes(16),
    ) -> None:
        self._router = router
        self._learned = learned
        self._reservations = reservations
        self._tickets = tickets
        self._metrics = metrics
        self._traces = traces
        self._clock = clock
        self._new_id = new_id

    async def route(
        self,
        generation: generation_pb2.Generation,
        servers_tried: Sequence[str],
        servers_unreached: Sequence[str],
        lost: Sequence[router_pb2.LostStream],
        deadline_s: float | None,
        parent: Context,
    ) -> router_pb2.RouteResponse:
        """The server for the request, which has an id, reserved. Waits for its turn as any other. Raises Refusal."""
        failure: EndpointError | None = None
        for each in lost:
            failure = self.release(each) or failure
        flight = Flight(generation.request_id, self._clock)
        about = {"stoker.request_id": flight.request_id, "stoker.model": generation.model}
        with self._traces.span("router.route", parent=parent, kind=SpanKind.SERVER, attributes=about):
            try:
                request, chosen, asked = await self._router.pick(
                    generation, flight, servers_tried, servers_unreached, failure, deadline_s
                )
            except BaseException as error:
                # Who gets no server is told of as any request that failed.
                failed(flight, error)
                over(flight, self._metrics, direct="refused")
                raise
            # Nothing waits from here on: what is booked is held.
            endpoint = chosen.candidate.holder.member.endpoint
            dispatch = Dispatch(request, chosen, generation, flight, self._learned)
            running = self._router.running.attempt((endpoint.server, endpoint.epoch), generation, flight.transcript)
            reservation = Reservation(self._new_id(), endpoint, flight, dispatch, running)
            self._reservations.hold(reservation)
        ticket, ends_s = self._tickets.client(generation, endpoint, reservation.id)
        response = router_pb2.RouteResponse(
            server=endpoint.server,
            address=endpoint.address,
            zone=endpoint.zone,
            epoch=endpoint.epoch,
            ticket=ticket,
            pick=flight.tries[-1].pick,
            request_id=generation.request_id,
            resume_mode=asked.resume.mode if asked.HasField("resume") else endpoint_pb2.RESUME_MODE_UNSPECIFIED,
            reservation=reservation.id,
        )
        response.expires_at.FromNanoseconds(int(ends_s * 1e9))
        return response

    def release(self, lost: router_pb2.LostStream) -> EndpointError | None:
        """Give a reservation back. What its end says of its server, None if it was not held any more."""
        return self._reservations.told(lost)
