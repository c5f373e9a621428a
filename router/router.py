"""The router's loop: admit, pick, attempt; when an endpoint fails go on with another; account for all of it."""

import random
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from discovery.endpoint import Endpoint, Residency
from router import resume
from router.accounting import failing, over
from router.admission import Admission, Ask
from router.attempt import Metadata, Transport
from router.dispatch import Dispatch
from router.errors import EndpointError, Fault
from router.fleet import Fleet
from router.flight import Flight
from router.learned import Learned
from router.ledger import NOTHING, Key
from router.messages import with_attempts, with_pick, without_started
from router.metrics import RouterMetrics
from router.policies import RoutingPolicy
from router.policy import Choices, Chosen, Conditions
from router.readying import Readying
from router.request import Request
from router.resume import ResumeRules
from router.retry_budget import RetryBudget
from router.room import Rooms
from router.running import Attempt, Running
from router.snapshot import NOBODY, Holder
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common import prefix
from stoker_common.clock import Clock
from stoker_common.refusal import Refusal, deadline_exceeded, not_found, unavailable
from stoker_common.resuming import Mode
from stoker_common.tickets import METADATA_KEY
from stoker_common.tracing import Tracing, inject
from stoker_common.transcript import Transcript

# What lets a request of this router's in at a server that asks for it.
WriteTicket = Callable[[generation_pb2.Generation, Endpoint], bytes]


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How often a request is tried before its first chunk."""

    # A server that was never reached has done no work and does not count (gRPC A6's transparent retry).
    max_attempts: int = 3
    # How long a broken stream waits for a server to go on with: a supervised server is back within seconds.
    hold_s: float = 10.0
    resume: ResumeRules = field(default_factory=ResumeRules)
    # What callers are told to wait when nothing is left: a restarted server is in the catalog about then.
    retry_after_s: float = 1.0


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
        self._fleet = fleet
        self._policy = policy
        self._learned = learned
        self._admission = admission
        self._readying = readying
        self._retry_budget = retry_budget
        self._transport = transport
        self._metrics = metrics
        self._traces = traces
        self._clock = clock
        self._rng = rng
        self._retry = retry
        self._write_ticket = ticket
        self.running = Running()

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
        sampling = generation.sampling
        return Request(
            request_id=generation.request_id,
            model=generation.model,
            prompt_tokens=self._learned.sizing.prompt_tokens(generation),
            expected_output_tokens=self._learned.sizing.output_tokens(generation),
            session=prefix.session_hash(generation.model, generation.cache_salt, generation.session.id),
            hard=generation.session.mode == generation_pb2.SESSION_MODE_HARD,
            prefix=prefix.of(generation, generation.model),
            # Logprobs of the prompt are computed with it.
            reads_cache=not sampling.skip_reading_prefix_cache and not sampling.HasField("prompt_logprobs"),
        )

    def choices(self, request: Request) -> Choices:
        """Every server's cost for the request, or why it is none to choose."""
        holders = self._fleet.snapshot.holders.get(request.model, NOBODY).by_key.values()
        return self._policy.weigh(request, holders, (), self._conditions(request, self._admission.rooms))

    def choose(self, request: Request, tried: Collection[Key] = (), *, crowd: bool = False) -> Chosen | None:
        """The server for the request; None if none is left that can take it now.

        `crowd`: also where there is no room. Streams that were accepted once do not wait for it.
        """
        conditions = self._conditions(request, None if crowd else self._admission.rooms)
        return self._policy.choose(request, self._fleet.snapshot, tried, conditions, self._rng)

    def choose_hot(self, request: Request, tried: Collection[Key] = ()) -> Chosen | None:
        """The server for the request, of those where its model is hot; None if none can take it now.

        Where another one would be ready before those have room, that one begins to ready it.
        """
        chosen = self.choose(request, tried)
        if chosen is None or chosen.candidate.holder.model.residency is Residency.HOT:
            return chosen
        holders = self._fleet.snapshot.holders.get(request.model, NOBODY).by_key
        failed = self._readying.failed(request.model)
        cold = [holder for key, holder in holders.items() if key not in failed]
        choices = self._policy.weigh(request, cold, tried, self._conditions(request, None))
        nearest = self._policy.settled(choices, request.model)
        if nearest is not None and nearest.holder.model.residency is not Residency.HOT:
            self._readying.want(request.model, nearest)
        return None

    def _conditions(self, request: Request, rooms: Rooms | None) -> Conditions:
        learned = self._learned
        session = learned.caches.session(request)
        return Conditions(
            accounts=learned.ledger.accounts,
            breakers=learned.breakers,
            held=learned.caches.held(request, session),
            ways_ms=learned.ways.ms,
            now_s=self._clock(),
            rooms=rooms,
            session=session,
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
        request = self.describe(generation)
        flight.model = request.model
        tried = self._avoided(servers_tried)
        if generation.HasField("resume"):
            flight.transcript = Transcript.of(generation.resume)
            tried |= self._avoided(generation.resume.servers_tried)
            request, chosen, asked = await self._choose_resume(
                request, generation, flight, tried, set(), None, deadline_s
            )
        else:
            ask = Ask(request, generation.priority, deadline_s, tried)
            if servers_tried and failure is None:
                text = f"this client's attempts at {', '.join(servers_tried)} came to nothing"
                failure = EndpointError(Fault.LINK, unavailable(text, reason="SERVER_FAILED"))
            ask = self._ask_anew(ask, tried, len(set(servers_tried).difference(unreached)), failure)
            first = await self._admission.admit(ask, partial(self.choose_hot, request, tried))
            if first is None:
                raise self._nothing_left(request, failure)
            chosen, asked = first, generation
        self._metrics.picks.labels(chosen.candidate.holder.member.endpoint.zone, chosen.reason).inc()
        return request, chosen, asked

    async def _failover(
        self,
        request: Request,
        generation: generation_pb2.Generation,
        flight: Flight,
        deadline_s: float | None,
    ) -> AsyncGenerator[bytes, None]:
        """Try endpoints until one has answered to the end or nothing is left to try.

        Before the first part, a failed request is sent elsewhere as it is; after it, as what is still to come.
        """
        tried: set[Key] = set()
        # Not to be asked again while there are others, but no way to be ruled out: what was full, draining or in
        # maintenance, and what the stream was moved off by suspicion after it had got on there.
        willing_later: set[Key] = set()
        priced, asked, counted = request, generation, 0
        failure: EndpointError | None = None
        if generation.HasField("resume"):
            # A client that lost its router goes on here.
            flight.transcript = Transcript.of(generation.resume)
            tried = self._avoided(generation.resume.servers_tried)
        while True:
            if flight.transcript.started or generation.HasField("resume"):
                priced, chosen, asked = await self._choose_resume(
                    request, generation, flight, tried, willing_later, failure, deadline_s
                )
            else:
                ask = Ask(request, generation.priority, deadline_s, tried)
                ask = self._ask_anew(ask, tried, counted, failure)
                pick = partial(self.choose_hot, request, tried)
                first = self._admission.at_once(ask, pick)
                if first is None:
                    async with aclosing(self._admission.wait(ask, pick)) as news:
                        async for each in news:
                            if isinstance(each, Chosen):
                                first = each
                            else:
                                yield inference_pb2.GenerateStreamResponse(progress=each).SerializeToString()
                if first is None:
                    raise self._nothing_left(request, failure)
                chosen = first
            key = chosen.candidate.holder.member.key
            tried.add(key)
            try:
                async with aclosing(self._attempt(priced, generation, asked, chosen, flight, deadline_s)) as parts:
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
                elif error.fault is Fault.MOVED:
                    tried.discard(key)
                elif error.suspicion and flight.tries[-1].tokens:
                    willing_later.add(key)  # each return needs tokens of the last stay, so this ends
                counted += error.fault not in (Fault.LINK, Fault.MOVED)
                self._metrics.failovers.labels(
                    error.fault.value, "resume" if flight.transcript.started else "retry"
                ).inc()

    def _ask_anew(self, ask: Ask, tried: set[Key], counted: int, failure: EndpointError | None) -> Ask:
        """How to ask for a server for a request of which nothing went out yet. Raises Refusal if it may not again."""
        if failure is None:
            self._retry_budget.request()
            return ask
        if counted >= self._retry.max_attempts or not self._may_retry(failure):
            raise self._nothing_left(ask.request, failure)
        # One that was overloaded may have room when it is this request's turn.
        tried -= self._admission.rooms.overloaded_now()
        return replace(ask, hold=failure.fault is not Fault.SERVER)

    def _may_retry(self, failure: EndpointError) -> bool:
        """Whether the retry budget has one left. Moving what a lost server had adds no load, and needs none."""
        if failure.fault in (Fault.LINK, Fault.MOVED) or self._retry_budget.take():
            return True
        self._metrics.retries_spared.inc()
        return False

    async def _choose_resume(
        self,
        request: Request,
        generation: generation_pb2.Generation,
        flight: Flight,
        tried: set[Key],
        willing_later: set[Key],
        failure: EndpointError | None,
        deadline_s: float | None,
    ) -> tuple[Request, Chosen, generation_pb2.Generation]:
        """The server to go on with a stream that broke, and what to ask it, as the policies see it and as it is sent.
        Waits a while for one. Raises Refusal."""
        if not resume.wanted(generation):
            raise self._nothing_left(request, failure)
        transcript = flight.transcript
        rest = replace(
            request,
            model=transcript.model,
            prompt_tokens=len(transcript.prompt_token_ids) + transcript.tokens,
            resumed_tokens=transcript.tokens,
            expected_output_tokens=max(1, request.expected_output_tokens - transcript.tokens),
        )
        give_up_s = self._clock() + self._retry.hold_s
        if deadline_s is not None:
            give_up_s = min(give_up_s, deadline_s)
        while True:
            holders = self._fleet.snapshot.holders.get(transcript.model, NOBODY).by_key
            modes = self._resume_modes(holders, generation, transcript)
            chosen = self.choose(rest, (holders.keys() - modes.keys()).union(tried), crowd=True)
            if chosen is not None:
                key = chosen.candidate.holder.member.key
                servers = [server for server, _ in tried]
                return rest, chosen, resume.continued(generation, transcript, modes[key], servers)
            if holders and not modes:
                raise resume.impossible(f"no server has a mode of resuming that keeps what it asked for; {failure}")
            if self._clock() >= give_up_s:
                raise self._nothing_left(request, failure)
            # Rather one that was busy, or that the client would avoid, than none.
            tried -= willing_later if failure is not None else set(tried)
            # A server that restarts, a link that comes back: either shows as a change, a breaker's end does not.
            await self._fleet.changed(within_s=0.2)

    def movable(self, key: Key, attempt: Attempt) -> bool:
        """Whether what runs on `key` could go on elsewhere now."""
        holders = self._fleet.snapshot.holders.get(attempt.generation.model, NOBODY).by_key
        others = {other: holder for other, holder in holders.items() if other != key}
        if not attempt.transcript.started:
            return bool(others)
        wanted = resume.wanted(attempt.generation)
        return wanted and bool(self._resume_modes(others, attempt.generation, attempt.transcript))

    def _avoided(self, servers: Collection[str]) -> set[Key]:
        """The members that a client asks to avoid."""
        return {key for key in self._fleet.snapshot.members if key[0] in servers}

    def _resume_modes(
        self, holders: Mapping[Key, Holder], generation: generation_pb2.Generation, transcript: Transcript
    ) -> dict[Key, Mode]:
        """How the holders that can would go on with the stream."""
        accounts, rules = self._learned.ledger.accounts, self._retry.resume
        modes: dict[Key, Mode] = {}
        for key, holder in holders.items():
            itl_ms = accounts.get(key, NOTHING).load.itl_ms
            mode = resume.mode_on(holder.member.endpoint, generation, transcript, itl_ms, rules)
            if mode is not None:
                modes[key] = mode
        return modes

    async def _attempt(
        self,
        request: Request,
        generation: generation_pb2.Generation,
        asked: generation_pb2.Generation,
        chosen: Chosen,
        flight: Flight,
        deadline_s: float | None,
    ) -> AsyncGenerator[bytes, None]:
        """One attempt on one endpoint, booked and accounted for. Raises EndpointError."""
        timeout_s = None if deadline_s is None else deadline_s - self._clock()
        if timeout_s is not None and timeout_s <= 0:
            raise EndpointError(Fault.CALLER, deadline_exceeded("the deadline passed before a server could answer"))
        holder = chosen.candidate.holder
        endpoint = holder.member.endpoint
        resumed = flight.transcript.started
        self._metrics.picks.labels(endpoint.zone, chosen.reason).inc()
        about = {"stoker.server": endpoint.server, "stoker.zone": endpoint.zone, "stoker.pick": chosen.reason}
        about |= {f"stoker.cost.{term}": of for term, of in chosen.candidate.cost._asdict().items()}
        with self._traces.span("router.attempt", kind=SpanKind.CLIENT, attributes=about) as span:
            with (
                Dispatch(request, chosen, generation, flight, self._learned) as dispatch,
                self.running.attempt(
                    holder.member.key, generation, flight.transcript, lambda: flight.tries[-1].tokens
                ) as interrupt,
            ):
                this = flight.tries[-1]
                span.set_attribute("stoker.first_token_ms.expected", this.predicted_ms)
                metadata = inject() + self._ticket(asked, endpoint)
                async with aclosing(self._transport.attempt(endpoint, asked, timeout_s, metadata, interrupt)) as parts:
                    async for part in parts:
                        finished = not part.plain and part.message.HasField("finished")
                        if interrupt.error is not None and not finished:
                            # Whether it can go elsewhere was judged by what had gone out: no more may.
                            raise interrupt.error
                        data = part.data
                        if dispatch.received(part):
                            # The client was told once how its stream started.
                            data = (
                                without_started(part.message) if resumed else with_pick(data, chosen, this.predicted_ms)
                            )
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
                with failing(flight):
                    yield
                flight.outcome = "ok"
            finally:
                over(flight, self._metrics)
