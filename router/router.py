"""The router's loop: admit, pick, attempt; when an endpoint fails go on with another; account for all of it."""

import logging
import random
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from router.attempt import Transport
from router.dispatch import Dispatch
from router.errors import EndpointError, Fault
from router.fleet import Fleet
from router.flight import Flight
from router.learned import Learned
from router.ledger import Key
from router.messages import with_attempts, with_pick
from router.metrics import RouterMetrics
from router.policy import Choices, Chosen, Conditions, Policy
from router.request import Request
from router.snapshot import NOBODY
from stoker.v1 import generation_pb2
from stoker_common.clock import Clock
from stoker_common.refusal import Refusal, deadline_exceeded, not_found, unavailable
from stoker_common.tracing import Tracing, inject

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How often a request is tried before its first chunk."""

    # A server that was never reached has done no work and does not count (gRPC A6's transparent retry).
    max_attempts: int = 3
    # What callers are told to wait when nothing is left: a restarted server is in the catalog about then.
    retry_after_s: float = 1.0


class Router:
    """Routes and relays requests. One to a process; all methods belong to its event loop."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        policy: Policy,
        learned: Learned,
        transport: Transport,
        metrics: RouterMetrics,
        traces: Tracing,
        clock: Clock,
        rng: random.Random,
        retry: RetryRules,
    ) -> None:
        self._fleet = fleet
        self._policy = policy
        self._learned = learned
        self._transport = transport
        self._metrics = metrics
        self._traces = traces
        self._clock = clock
        self._rng = rng
        self._retry = retry

    def describe(self, generation: generation_pb2.Generation) -> Request:
        """The request as the policies see it. Raises Refusal: NOT_FOUND for a model that no server lists."""
        snapshot = self._fleet.snapshot
        if not snapshot.known:
            raise unavailable(
                "this router has not read the catalog yet; if that lasts, look at its log for what Consul answers",
                reason="CATALOG_UNREAD",
                retry_after_s=self._retry.retry_after_s,
            )
        if generation.model not in snapshot.models:
            known = ", ".join(sorted(snapshot.models)[:20]) or "none yet"
            raise not_found(
                f"no server has the model {generation.model!r}; the models are: {known}",
                field="generation.model",
                reason="MODEL_NOT_FOUND",
            )
        return Request(
            request_id=generation.request_id,
            model=generation.model,
            prompt_tokens=self._learned.sizing.prompt_tokens(generation),
            expected_output_tokens=self._learned.sizing.output_tokens(generation),
            session=generation.session.id,
        )

    def choices(self, request: Request) -> Choices:
        """Every server's cost for the request, or why it is none to choose."""
        holders = self._fleet.snapshot.holders.get(request.model, NOBODY).by_key.values()
        return self._policy.weigh(request, holders, (), self._conditions(request))

    def choose(self, request: Request, tried: Collection[Key] = ()) -> Chosen | None:
        """The server for the request; None if none is left that can take it."""
        return self._policy.choose(request, self._fleet.snapshot, tried, self._conditions(request), self._rng)

    def _conditions(self, request: Request) -> Conditions:
        learned = self._learned
        return Conditions(
            accounts=learned.ledger.accounts,
            breakers=learned.breakers,
            held=learned.sessions.held(request.session),
            ways_ms=learned.ways.ms,
            now_s=self._clock(),
        )

    async def generate(
        self, generation: generation_pb2.Generation, deadline_s: float | None, parent: Context
    ) -> AsyncGenerator[bytes, None]:
        """The answer's serialised parts, as they come. `deadline_s`: the clock's reading at the caller's deadline;
        `parent`: the caller's trace.

        Closing the generator cancels the request and aborts what runs for it. Raises Refusal.
        """
        flight = Flight(generation.request_id, self._clock)
        with self._flying(flight, generation.model, parent):
            request = self.describe(generation)
            flight.model = request.model
            async with aclosing(self._failover(request, generation, flight, deadline_s)) as parts:
                async for data in parts:
                    yield data

    async def _failover(
        self,
        request: Request,
        generation: generation_pb2.Generation,
        flight: Flight,
        deadline_s: float | None,
    ) -> AsyncGenerator[bytes, None]:
        """Try endpoints until one has answered or nothing is left to try."""
        tried: set[Key] = set()
        counted = 0
        failure: EndpointError | None = None
        while True:
            chosen = self.choose(request, tried) if counted < self._retry.max_attempts else None
            if chosen is None:
                raise self._nothing_left(request, failure)
            tried.add(chosen.candidate.holder.member.key)
            sent = False
            try:
                async with aclosing(self._attempt(request, generation, chosen, flight, deadline_s)) as parts:
                    async for data in parts:
                        sent = True
                        yield data
                return
            except EndpointError as error:
                if sent or not error.fault.retryable:
                    raise error.refusal from error
                failure = error
                counted += error.fault is not Fault.LINK
                self._metrics.failovers.labels(error.fault.value).inc()

    async def _attempt(
        self,
        request: Request,
        generation: generation_pb2.Generation,
        chosen: Chosen,
        flight: Flight,
        deadline_s: float | None,
    ) -> AsyncGenerator[bytes, None]:
        """One attempt on one endpoint, booked and accounted for. Raises EndpointError."""
        timeout_s = None if deadline_s is None else deadline_s - self._clock()
        if timeout_s is not None and timeout_s <= 0:
            raise EndpointError(Fault.CALLER, deadline_exceeded("the deadline passed before a server could answer"))
        endpoint = chosen.candidate.holder.member.endpoint
        self._metrics.picks.labels(endpoint.zone, chosen.reason).inc()
        about = {"stoker.server": endpoint.server, "stoker.zone": endpoint.zone, "stoker.pick": chosen.reason}
        with self._traces.span("router.attempt", kind=SpanKind.CLIENT, attributes=about):
            with Dispatch(request, chosen, generation, flight, self._learned) as dispatch:
                async with aclosing(self._transport.attempt(endpoint, generation, timeout_s, inject())) as parts:
                    async for part in parts:
                        first = dispatch.received(part.message)
                        data = with_pick(part.data, chosen) if first else part.data
                        if part.message.HasField("finished"):
                            dispatch.finished(part.message)
                            data = with_attempts(data, flight.attempts())
                        yield data
                dispatch.require_finished()

    def _nothing_left(self, request: Request, failure: EndpointError | None) -> Refusal:
        """Why the request cannot be served, from its last failure or from what every holder is excluded by."""
        if failure is not None:
            refusal = failure.refusal
            if refusal.retry_after_s is None:
                refusal.retry_after_s = self._retry.retry_after_s
            return refusal
        members = self._fleet.snapshot.members.values()
        why = "; ".join(
            f"{member.endpoint.server} is {member.absent}" for member in members if member.endpoint.model(request.model)
        )
        return unavailable(
            f"no server can take the model {request.model!r} now: {why}; `stoker status` shows them",
            reason="NO_ENDPOINT",
            retry_after_s=self._retry.retry_after_s,
        )

    @contextmanager
    def _flying(self, flight: Flight, model: str, parent: Context) -> Iterator[None]:
        """Around a whole request: its span, its metrics, its line in the log, however it ends."""
        about = {"stoker.request_id": flight.request_id, "stoker.model": model}
        with (
            self._metrics.in_flight.track_inprogress(),
            self._traces.span("router.generate", parent=parent, kind=SpanKind.SERVER, attributes=about),
        ):
            try:
                yield
                flight.outcome = "ok"
            except Refusal as refusal:
                flight.outcome = refusal.code.name.lower()
                raise
            except Exception:
                flight.outcome = "internal"
                raise
            finally:
                self._metrics.observe(flight)
                log.info("request", extra=flight.summary())
