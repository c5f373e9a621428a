"""The router's loop: admit, pick, attempt; when an endpoint fails go on with another; account for all of it."""

import random
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from functools import partial

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from discovery.endpoint import Endpoint
from router.accounting import Flying
from router.admission import Admission
from router.attempt import Attempt, Metadata, Transport
from router.dispatch import Dispatch
from router.errors import EndpointError, Fault
from router.fleet import Fleet
from router.flight import Flight
from router.learned import Learned
from router.ledger import Key
from router.messages import with_attempts, with_pick, without_started
from router.metrics import RouterMetrics
from router.onward import Onward
from router.outlook import Ask
from router.picks import Picks
from router.policies import RoutingPolicy
from router.policy import Chosen
from router.readying import Readying
from router.request import Request
from router.retries import DID_NOTHING, Retries, RetryRules
from router.retry_budget import RetryBudget
from router.running import Running
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common.clock import Clock
from stoker_common.refusal import deadline_exceeded, unavailable
from stoker_common.sink import Sink
from stoker_common.tickets import METADATA_KEY
from stoker_common.tracing import Tracing, inject
from stoker_common.transcript import Transcript

# What lets a request of this router's in at a server that asks for it.
WriteTicket = Callable[[generation_pb2.Generation, Endpoint], bytes]


class Router:
    """Routes and relays requests. One to a process; all methods belong to its event loop."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        policy: RoutingPolicy,
        learned: Learned,
        admission: Admission,
        readying: Readying,
        retry_budget: RetryBudget,
        transport: Transport,
        metrics: RouterMetrics,
        traces: Tracing,
        clock: Clock,
        rng: random.Random,
        retry: RetryRules,
        ticket: WriteTicket = lambda generation, endpoint: b"",
    ) -> None:
        self.picks = Picks(fleet, policy, learned, admission.rooms, readying, clock, rng, retry.retry_after_s)
        self.onward = Onward(self.picks, fleet, learned, clock, retry.hold_s, retry.resume)
        self._learned = learned
        self._admission = admission
        self._retries = Retries(retry, retry_budget, admission.rooms, metrics)
        self._transport = transport
        self._metrics = metrics
        self._traces = traces
        self._clock = clock
        self._write_ticket = ticket
        self.running = Running()

    def generate(
        self,
        generation: generation_pb2.Generation,
        deadline_s: float | None,
        parent: Context,
        sink: Sink | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The answer's serialised parts, as they come. `deadline_s`: the clock's reading at the caller's deadline;
        `parent`: the caller's trace. With `sink`, output that comes while the next part is waited for may go there
        instead.

        Closing the generator cancels the request and aborts what runs for it. Raises Refusal.
        """
        flight = Flight(generation.request_id, self._clock)
        return self._failover(generation, flight, deadline_s, parent, sink)

    async def pick(
        self,
        generation: generation_pb2.Generation,
        flight: Flight,
        servers_tried: Collection[str],
        unreached: Collection[str],
        failure: EndpointError | None,
        deadline_s: float | None,
    ) -> tuple[Request, Chosen, generation_pb2.Generation]:
        """The server for a client that streams from it itself, and what is asked of it, as the policies see it and as
        it is sent: for a new request, for one that failed before on `servers_tried` (`failure` is the last one;
        `unreached` of them did nothing), or for one that goes on. Raises Refusal.

        Book it before the next await.
        """
        request = self.picks.describe(generation)
        flight.model = request.model
        tried = self.onward.avoided(servers_tried)
        if generation.HasField("resume"):
            flight.transcript = Transcript.of(generation.resume)
            tried |= self.onward.avoided(generation.resume.servers_tried)
            request, chosen, asked = await self.onward.choose(
                request, generation, flight, tried, set(), None, deadline_s
            )
        else:
            ask = Ask(request, generation.priority, deadline_s, tried)
            if servers_tried and failure is None:
                text = f"this client's attempts at {', '.join(servers_tried)} came to nothing"
                failure = EndpointError(Fault.LINK, unavailable(text, reason="SERVER_FAILED"))
            again = self._retries.ask_anew(ask, tried, len(set(servers_tried).difference(unreached)), failure)
            if again is None:
                raise self.picks.nothing_left(request, failure)
            first = await self._admission.admit(again, partial(self.picks.choose_hot, request, tried))
            if first is None:
                raise self.picks.nothing_left(request, failure)
            chosen, asked = first, generation
        self._metrics.picked(chosen.candidate.holder.member.endpoint.zone, chosen.reason)
        return request, chosen, asked

    async def _failover(
        self,
        generation: generation_pb2.Generation,
        flight: Flight,
        deadline_s: float | None,
        parent: Context,
        sink: Sink | None,
    ) -> AsyncGenerator[bytes, None]:
        """Try endpoints until one has answered to the end or nothing is left to try.

        Before the first part, a failed request is sent elsewhere as it is; after it, as what is still to come.
        """
        with Flying(flight, generation.model, parent, self._metrics, self._traces):
            request = self.picks.describe(generation)
            flight.model = request.model
            tried: set[Key] = set()
            # Not to be asked again while there are others, but no way to be ruled out: what was full, draining or in
            # maintenance, and what the stream was moved off by suspicion after it had got on there.
            willing_later: set[Key] = set()
            priced, asked, counted, outbid = request, generation, 0, 0
            failure: EndpointError | None = None
            if generation.HasField("resume"):
                # A client that lost its router goes on here.
                flight.transcript = Transcript.of(generation.resume)
                tried = self.onward.avoided(generation.resume.servers_tried)
            while True:
                if flight.transcript.started or generation.HasField("resume"):
                    priced, chosen, asked = await self.onward.choose(
                        request, generation, flight, tried, willing_later, failure, deadline_s
                    )
                else:
                    ask = Ask(request, generation.priority, deadline_s, tried)
                    again = self._retries.ask_anew(ask, tried, counted, failure)
                    if again is None:
                        raise self.picks.nothing_left(request, failure)
                    pick = partial(self.picks.choose_hot, request, tried)
                    first = self._admission.at_once(again, pick)
                    if first is None:
                        async with aclosing(self._admission.wait(again, pick)) as news:
                            async for each in news:
                                if isinstance(each, Chosen):
                                    first = each
                                else:
                                    yield inference_pb2.GenerateStreamResponse(progress=each).SerializeToString()
                    if first is None:
                        raise self.picks.nothing_left(request, failure)
                    chosen = first
                key = chosen.candidate.holder.member.key
                tried.add(key)
                try:
                    attempt = self._attempt(priced, generation, asked, chosen, flight, deadline_s, sink, outbid)
                    async with aclosing(attempt) as parts:
                        async for data in parts:
                            yield data
                    return
                except EndpointError as error:
                    if not error.fault.retryable:
                        raise error.refusal from error
                    failure = error
                    willing_later.discard(key)  # it was busy before; what it is now counts
                    if error.fault is Fault.BUSY:
                        willing_later.add(key)
                        self._admission.rooms.refused(key, error.refusal)
                    elif error.fault in (Fault.MOVED, Fault.OUTBID):
                        tried.discard(key)
                    elif error.suspicion and flight.tries[-1].tokens:
                        willing_later.add(key)  # each return needs tokens of the last stay, so this ends
                    outbid += error.fault is Fault.OUTBID
                    counted += error.fault not in DID_NOTHING
                    self._metrics.failovers.labels(
                        error.fault.value, "resume" if flight.transcript.started else "retry"
                    ).inc()

    async def _attempt(
        self,
        request: Request,
        generation: generation_pb2.Generation,
        asked: generation_pb2.Generation,
        chosen: Chosen,
        flight: Flight,
        deadline_s: float | None,
        sink: Sink | None,
        outbid: int,
    ) -> AsyncGenerator[bytes, None]:
        """One attempt on one endpoint, booked and accounted for. Raises EndpointError."""
        timeout_s = None if deadline_s is None else deadline_s - self._clock()
        if timeout_s is not None and timeout_s <= 0:
            raise EndpointError(Fault.CALLER, deadline_exceeded("the deadline passed before a server could answer"))
        holder = chosen.candidate.holder
        endpoint = holder.member.endpoint
        resumed = flight.transcript.started
        bid = () if resumed else self.picks.bid(request, chosen, outbid)
        self._metrics.picked(endpoint.zone, chosen.reason)
        about = partial(_about, chosen)
        with self._traces.span("router.attempt", kind=SpanKind.CLIENT, attributes=about) as span:
            with (
                Dispatch(request, chosen, generation, flight, self._learned) as dispatch,
                self.running.attempt(
                    holder.member.key, generation, flight.transcript, lambda: flight.tries[-1].tokens
                ) as interrupt,
            ):
                this = flight.tries[-1]
                span.set_attribute("stoker.first_token_ms.expected", this.expected.total_ms)
                metadata = inject() + self._ticket(asked, endpoint) + bid
                relay = None if sink is None else dispatch.relay(sink)
                attempt = Attempt(endpoint, asked, timeout_s, metadata, interrupt, relay)
                parts = self._transport.attempt(attempt)
                async with aclosing(parts):
                    async for part in parts:
                        finished = not part.plain and part.message.HasField("finished")
                        if interrupt.error is not None and not finished:
                            # Whether it can go elsewhere was judged by what had gone out: no more may.
                            raise interrupt.error
                        data = part.data
                        if dispatch.received(part):
                            # The client was told once how its stream started.
                            data = without_started(part.message) if resumed else with_pick(data, this.pick)
                        if finished:
                            dispatch.finished(part.message)
                            if this.waited_ms is not None:
                                span.set_attribute("stoker.first_token_ms.actual", this.waited_ms)
                            data = with_attempts(data, flight.attempts(), flight.exactness)
                        if data:
                            yield data
                dispatch.require_finished()

    def _ticket(self, asked: generation_pb2.Generation, endpoint: Endpoint) -> Metadata:
        ticket = self._write_ticket(asked, endpoint)
        return ((METADATA_KEY, ticket),) if ticket else ()


def _about(chosen: Chosen) -> dict[str, AttributeValue]:
    """An attempt for its span: where it went and why, with the cost term by term."""
    endpoint = chosen.candidate.holder.member.endpoint
    about = {"stoker.server": endpoint.server, "stoker.zone": endpoint.zone, "stoker.pick": chosen.reason}
    return about | {f"stoker.cost.{term}": of for term, of in chosen.candidate.cost._asdict().items()}
