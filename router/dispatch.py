"""One attempt's accounts: booked when it is dispatched, told apart by how it ended, released whatever happens."""

from types import TracebackType
from typing import Self

from discovery.messages import load_from_proto
from router.attempt import Part
from router.calibration import sample
from router.errors import EndpointError, Fault
from router.first_tokens import Expectation
from router.flight import Flight
from router.learned import Learned
from router.ledger import NOTHING
from router.policy import Candidate, Chosen
from router.request import Request
from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2
from stoker_common.link.stream import Relay
from stoker_common.prompt_work import prompt_work
from stoker_common.refusal import unavailable
from stoker_common.sink import Sink


def expect(learned: Learned, request: Request, candidate: Candidate, now_s: float) -> Expectation:
    """When the request's first token would come if it was dispatched to the candidate now."""
    member, cached = candidate.holder.member, candidate.cost.cached_tokens
    account = learned.ledger.accounts.get(member.key, NOTHING)
    attention = learned.ledger.attention_tokens(member.key)
    return learned.first_tokens.expect(
        member.key,
        request.model,
        max(1.0, prompt_work(request.prompt_tokens - cached, cached, attention)),
        candidate.cost,
        account,
        learned.ways.ms.get(member.endpoint.zone, 0.0),
        now_s,
        member.endpoint.step_tokens,
    )


class Dispatch:
    """A context around an attempt. Leaving it without `finished` or an EndpointError says nothing of the endpoint."""

    def __init__(
        self,
        request: Request,
        chosen: Chosen,
        generation: generation_pb2.Generation,
        flight: Flight,
        learned: Learned,
    ) -> None:
        self._request = request
        self._member = chosen.candidate.holder.member
        self._cost = chosen.candidate.cost
        self._generation = generation
        self._flight = flight
        self._learned = learned
        self._try = flight.begin(chosen)
        self._try.expected = expect(learned, request, chosen.candidate, flight.clock())
        self._started = False
        self._finished = False

    def __enter__(self) -> Self:
        self._expected = self._learned.caches.expect(self._member.key, self._request)
        computed = self._request.prompt_tokens - self._cost.cached_tokens
        self._booking = self._learned.ledger.book(
            self._member.key, computed, self._cost.cached_tokens, self._try.expected.total_ms
        )
        self._learned.breakers.dispatched(self._member.key)
        return self

    def received(self, part: Part, ago_s: float = 0.0) -> bool:
        """A part came, so long ago. Whether it is the one that tells how the generation started."""
        first = not part.plain and part.message.HasField("started")
        if first:
            self._began(part.message.started)
        if not self._started and (part.plain or part.message.deltas):
            self._answered(ago_s)
        self._flight.received(part)
        return first

    def relay(self, sink: Sink) -> Relay:
        """Passes on output, while `sink` has room for it. What it gives runs once a token."""
        put, relayed = sink.put, self._flight.relayed

        def relay(data: bytes, tokens: int) -> bool:
            if not put(data):
                return False
            if not self._started:
                self._answered(0.0)
            relayed(data, tokens)
            return True

        return relay

    def finished(self, message: inference_pb2.GenerateStreamResponse, ago_s: float = 0.0) -> None:
        """The last part came, so long ago."""
        self._finished = True
        finished, key = message.finished, self._member.key
        self._learned.breakers.succeeded(key, self._try.began_s)
        self._learned.sizing.observe_output(self._generation, finished.usage.completion_tokens)
        took_s = self._flight.clock() - ago_s - self._try.began_s
        self._learned.services.observe(self._request.model, took_s, self._try.tokens)
        conversation = self._flight.prompt_tokens + finished.usage.completion_tokens
        self._learned.caches.left(key, self._request, conversation)
        if self._try.waited_ms is not None:
            server_ms = finished.timings.ttft.ToNanoseconds() / 1e6
            self._learned.ways.observe(self._member.endpoint.zone, self._try.waited_ms, server_ms)
            seen = sample(self._try.expected, self._try.waited_ms, finished.timings)
            self._learned.calibration.observe(key, self._request.model, seen)
            self._learned.first_tokens.told(
                key, self._request.model, self._try.expected, self._try.waited_ms, finished.timings
            )
            self._flight.sample = seen

    def require_finished(self) -> None:
        """The stream ended. Raises EndpointError if it ended before its last part."""
        if not self._finished:
            endpoint = self._member.endpoint
            message = f"server {endpoint.server} at {endpoint.address} ended the stream without finishing it"
            raise EndpointError(Fault.SERVER, unavailable(message, reason="SERVER_FAILED"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._booking.close()
        self._expected.close()
        breakers, key = self._learned.breakers, self._member.key
        if isinstance(error, EndpointError):
            self._flight.failed(error)
        if isinstance(error, EndpointError) and error.fault in (Fault.LINK, Fault.SERVER):
            breakers.failed(key, dead_link=error.fault is Fault.LINK, since_s=self._try.began_s)
        elif not self._finished:
            breakers.undecided(key, self._try.began_s)

    def _answered(self, ago_s: float) -> None:
        """The first token came, so long ago."""
        self._started = True
        self._booking.first_token()
        self._expected.close()
        breakers, key, since_s = self._learned.breakers, self._member.key, self._try.began_s
        breakers.answered(key, since_s)
        if self._try.resume_mode != endpoint_pb2.RESUME_MODE_REPLAY:  # a replay decodes before it says anything
            took_ms = (self._flight.clock() - ago_s - since_s) * 1e3
            breakers.timed(key, took_ms, self._cost.total_ms - self._cost.decode_ms, since_s)
            self._try.waited_ms = took_ms
            self._flight.waited_ms, self._flight.predicted_ms = took_ms, self._try.expected.total_ms
            cached = self._flight.cached_tokens
            attention = self._learned.ledger.attention_tokens(key)
            computed = prompt_work(self._flight.prompt_tokens - cached, cached, attention)
            now_s = self._flight.clock()
            self._learned.first_tokens.came(key, self._request.model, self._try.expected, computed, took_ms, now_s)

    def _began(self, started: inference_pb2.Started) -> None:
        self._try.resume_mode = started.resume_mode
        self._try.exactness = started.resume_exactness
        self._try.numerics_class = started.numerics_class
        self._flight.prompt_tokens = started.prompt_tokens
        self._flight.cached_tokens = started.cached_tokens
        # The request's length was an estimate: what counts is which part of it was expected.
        prompt_tokens = max(1, self._request.prompt_tokens - self._request.resumed_tokens)
        expected = self._cost.cached_tokens * started.prompt_tokens // prompt_tokens
        self._flight.expected_cached_tokens = min(expected, started.prompt_tokens)
        self._learned.sizing.observe_prompt(self._generation, started.prompt_tokens)
        self._learned.caches.found(self._member.key, self._request, started.cached_tokens)
        if started.HasField("load"):
            self._learned.ledger.report(self._member.key, load_from_proto(started.load))
