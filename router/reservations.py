"""What this router reserved for clients that stream from servers themselves: booked as a relayed request is, and never
leaked.

    reserve ──► waits for news ──► the server: it started, it is still there ──► waits again, `lease_s` from then on
                      ├── the server or the client: it has ended ──► settled by how it ended
                      ├── the link to the server is lost ──────────► settled as a loss
                      └── no news until the lease's end ───────────► released; says nothing of the server
"""

from prometheus_client import CollectorRegistry, Counter, Gauge

from discovery.endpoint import Endpoint
from router.accounting import over
from router.attempt import Part, Transport
from router.dispatch import Dispatch
from router.errors import EndpointError, Fault, endpoint_error
from router.flight import Flight
from router.ledger import Key
from router.metrics import RouterMetrics
from router.room import Rooms
from router.running import Runs
from stoker.v1 import inference_pb2, router_pb2, worker_link_pb2
from stoker_common import status
from stoker_common.clock import Clock
from stoker_common.refusal import Code, Refusal, unavailable
from stoker_common.ticks import tick

_LOOK_EVERY_S = 0.5


class ReservationMetrics:
    """What reservations count."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.held = Gauge(
            # Of several processes, the sum of those that live.
            "stoker_router_reservations",
            "Streams reserved on servers for clients.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.ended = Counter(
            "stoker_router_reservations_ended",
            "Reservations by how they ended: ok, failed, cancelled, lost, expired, released.",
            ("how",),
            registry=registry,
        )


class Reservation:
    """One: what it books is booked when it is made, and given back when it is left."""

    __slots__ = ("_running", "dispatch", "endpoint", "flight", "id", "interrupt", "until_s")

    def __init__(self, id_: bytes, endpoint: Endpoint, flight: Flight, dispatch: Dispatch, running: Runs) -> None:
        self.id = id_
        self.endpoint = endpoint
        self.flight = flight
        self.dispatch = dispatch.__enter__()
        self._running = running
        self.interrupt = running.__enter__()
        self.until_s = 0.0

    @property
    def key(self) -> Key:
        """The server and its epoch."""
        return self.endpoint.server, self.endpoint.epoch

    def leave(self, error: EndpointError | None) -> None:
        """It is over, by `error` if it failed. Once."""
        self._running.__exit__()
        self.dispatch.__exit__(type(error) if error else None, error, None)


class Reservations:
    """All of a router. Belongs to one event loop."""

    def __init__(
        self,
        *,
        lease_s: float,
        clock: Clock,
        metrics: RouterMetrics,
        counts: ReservationMetrics,
        transport: Transport,
        rooms: Rooms,
    ) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._metrics = metrics
        self._counts = counts
        self._transport = transport
        self._rooms = rooms
        self._held: dict[bytes, Reservation] = {}

    def __len__(self) -> int:
        return len(self._held)

    async def run(self) -> None:
        """Let go of what nobody speaks of any more, until cancelled."""
        while True:
            await tick(_LOOK_EVERY_S)
            self.lapse()

    def hold(self, reservation: Reservation) -> None:
        """From now on it waits for news."""
        reservation.until_s = self._clock() + self._lease_s
        self._held[reservation.id] = reservation
        self._counts.held.inc()
        self._transport.want(reservation.endpoint)
        # An operator empties the server: its client is told through it.
        reservation.interrupt.bind(
            lambda error: self._transport.move(reservation.endpoint, reservation.id, error.refusal.message)
        )

    def news(self, endpoint: Endpoint, news: worker_link_pb2.DirectStream) -> None:
        """A server said what became of a stream. It is ignored where that is not held, or is another server's."""
        held = self._held.get(news.reservation)
        if held is None or held.key != (endpoint.server, endpoint.epoch):
            return
        held.until_s = self._clock() + self._lease_s
        if news.HasField("error"):
            refusal = status.from_rpc_status(news.error.status)
            if refusal.code is Code.CANCELLED:
                self._settle(held, "cancelled")
            else:
                self._failed(held, endpoint_error(refusal, endpoint, cut=False))
            return
        if news.part:
            ago_s = max(0.0, news.ago.ToNanoseconds() / 1e9)
            self._part(held, inference_pb2.GenerateStreamResponse.FromString(news.part), ago_s)
        if news.last:
            self._settle(held, "ok")

    def told(self, lost: router_pb2.LostStream) -> EndpointError | None:
        """Its client said that it came to nothing. What that says of its server; None if it is not held any more:
        then the server has said so, or it has lapsed."""
        held = self._held.get(lost.reservation)
        if held is None:
            return None
        if lost.unreachable or lost.code in (0, Code.CANCELLED.value) or lost.reason.startswith("TICKET_"):
            # The way between them may be cut, or was never there; the client was late, or its clock is wrong.
            self._settle(held, "released")
            where = f"server {held.endpoint.server} at {held.endpoint.address} in {held.endpoint.zone}"
            text = f"{where} was not reached by its client: {lost.message}"
            return EndpointError(Fault.LINK, unavailable(text, reason="SERVER_UNREACHABLE"))
        # A client may say any number. The server's own word may come behind its client's: it says the same.
        code = next((each for each in Code if each.value == lost.code), Code.UNKNOWN)
        retry_after_s = lost.retry_after.ToNanoseconds() / 1e9 if lost.HasField("retry_after") else None
        refusal = Refusal(code, lost.message, reason=lost.reason, retry_after_s=retry_after_s)
        error = endpoint_error(refusal, held.endpoint, cut=False)
        self._failed(held, error)
        return error

    def lost(self, key: Key) -> None:
        """The link to a server broke: nobody tells any more what becomes of its streams, and they may live on."""
        for held in [each for each in self._held.values() if each.key == key]:
            self._settle(held, "lost")

    def lapse(self) -> None:
        """Release those of which nobody has said anything for too long."""
        now_s = self._clock()
        for held in [each for each in self._held.values() if now_s > each.until_s]:
            self._settle(held, "expired")

    def _part(self, held: Reservation, part: inference_pb2.GenerateStreamResponse, ago_s: float) -> None:
        flight, at_s = held.flight, self._clock() - ago_s
        if part.HasField("started"):
            if flight.first_token_s is not None:
                return  # a router that attaches is told again
            # It tells of the first token, and of no other.
            part.deltas.add()
            flight.first_token_s = flight.last_token_s = at_s
        held.dispatch.received(Part(b"", part), ago_s)
        if part.HasField("finished"):
            flight.tokens = flight.tries[-1].tokens = part.finished.usage.completion_tokens
            flight.last_token_s = at_s
            held.dispatch.finished(part, ago_s)

    def _failed(self, held: Reservation, error: EndpointError) -> None:
        if held.interrupt.error is not None:
            error = EndpointError(Fault.MOVED, error.refusal)
        held.flight.outcome = error.refusal.code.name.lower()
        self._rooms.refused(held.key, error.refusal)
        self._settle(held, "failed", error)

    def _settle(self, held: Reservation, how: str, error: EndpointError | None = None) -> None:
        del self._held[held.id]
        self._counts.held.dec()
        self._counts.ended.labels(how).inc()
        if how == "ok":
            held.flight.outcome = "ok"
        held.leave(error)
        over(held.flight, self._metrics, direct=how)
