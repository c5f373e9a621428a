"""One request's life in the router: what was tried, what went out, and when.

Becomes the response's attempts, a log line and metrics.
"""

from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from router import messages
from router.attempt import Part
from router.calibration import Sample
from router.errors import EndpointError, Fault
from router.first_tokens import NOTHING_EXPECTED, Expectation
from router.policy import Chosen
from stoker.v1 import endpoint_pb2, inference_pb2, pick_pb2
from stoker_common.clock import Clock
from stoker_common.refusal import Code
from stoker_common.resuming import Exactness, Mode, exactness
from stoker_common.transcript import Transcript


@dataclass(slots=True)
class Try:
    """One attempt: where, since when, what it delivered, how it ended (OK while it runs)."""

    server: str
    zone: str
    epoch: str
    chosen: Chosen
    began_s: float
    # From its beginning to its first token: what was expected, and what came of it (None before that).
    expected: Expectation = NOTHING_EXPECTED
    waited_ms: float | None = None
    ended_s: float | None = None
    tokens: int = 0
    code: Code | None = None
    failure: str = ""
    resume_mode: Mode = endpoint_pb2.RESUME_MODE_UNSPECIFIED
    exactness: Exactness = inference_pb2.EXACTNESS_UNSPECIFIED
    numerics_class: str = ""
    _pick: pick_pb2.Pick | None = None

    @property
    def pick(self) -> pick_pb2.Pick:
        """Why the server was chosen, as the API tells it: with the first part, and with the last."""
        if self._pick is None:
            self._pick = messages.pick(self.chosen, self.expected)
        return self._pick


@dataclass(slots=True)
class Flight:
    """What happened to one request so far. Times are the clock's seconds."""

    request_id: str
    clock: Clock
    began_s: float = field(init=False)
    model: str = ""  # set when it is known to exist: a caller's invention must not become a metric's label
    tries: list[Try] = field(default_factory=list)
    first_token_s: float | None = None
    last_token_s: float = 0.0
    longest_gap_s: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    # What the router had expected of them.
    expected_cached_tokens: int = 0
    # From the last attempt's beginning to its first token, and what the pick had expected.
    waited_ms: float | None = None
    predicted_ms: float = 0.0
    # The same term by term, once it has finished.
    sample: Sample | None = None
    transcript: Transcript = field(default_factory=Transcript)
    outcome: str = "cancelled"  # until something else is known: a client that vanishes says nothing

    def __post_init__(self) -> None:
        self.began_s = self.clock()

    def begin(self, chosen: Chosen) -> Try:
        """An attempt begins."""
        endpoint = chosen.candidate.holder.member.endpoint
        attempt = Try(endpoint.server, endpoint.zone, endpoint.epoch, chosen, self.clock())
        self.tries.append(attempt)
        return attempt

    def received(self, part: Part) -> None:
        """A part came."""
        if part.plain:
            self.relayed(part.data, part.tokens)
        else:
            self.transcript.add(part.message, part.data or None)
            if tokens := part.tokens or sum(len(delta.token_ids) for delta in part.message.deltas):
                self._count(tokens)

    def relayed(self, data: bytes, tokens: int) -> None:
        """A part of nothing but output came, with so many tokens. Runs once a token."""
        self.transcript.append(data)
        if tokens:
            self._count(tokens)

    def _count(self, tokens: int) -> None:
        now_s = self.clock()
        if self.first_token_s is None:
            self.first_token_s = now_s
        elif now_s - self.last_token_s > self.longest_gap_s:
            self.longest_gap_s = now_s - self.last_token_s
        self.last_token_s = now_s
        self.tokens += tokens
        self.tries[-1].tokens += tokens

    def failed(self, error: EndpointError) -> None:
        """The running attempt failed. One that the server never took is none."""
        if error.fault is Fault.OUTBID:
            self.tries.pop()
            return
        attempt = self.tries[-1]
        attempt.ended_s = self.clock()
        attempt.code = error.refusal.code
        attempt.failure = error.refusal.message

    @property
    def ttft_s(self) -> float | None:
        """From the request's arrival to its first token; None before that."""
        return None if self.first_token_s is None else self.first_token_s - self.began_s

    @property
    def itl_s(self) -> float | None:
        """Mean time between tokens after the first; None with fewer than two."""
        if self.first_token_s is None or self.tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.tokens - 1)

    @property
    def exactness(self) -> "inference_pb2.Exactness.ValueType":
        """How the answer relates to what one server alone would have sent."""
        spoke = [attempt for attempt in self.tries if attempt.numerics_class]
        return exactness((each.exactness for each in spoke), [each.numerics_class for each in spoke])

    def attempts(self) -> list[inference_pb2.Attempt]:
        """The tries as the response tells them."""
        return [self._attempt(attempt) for attempt in self.tries]

    def summary(self) -> dict[str, object]:
        """The request for a log line: sizes, times and places, never its text."""
        last = self.tries[-1] if self.tries else None
        return {
            "request_id": self.request_id,
            "model": self.model,
            "outcome": self.outcome,
            "server": last.server if last else "",
            "zone": last.zone if last else "",
            "pick": last.chosen.reason if last else "",
            "attempts": len(self.tries),
            "failures": [attempt.failure for attempt in self.tries if attempt.failure],
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "expected_cached_tokens": self.expected_cached_tokens,
            "tokens": self.tokens,
            "ttft_ms": None if self.ttft_s is None else round(self.ttft_s * 1e3, 1),
            "duration_ms": round((self.clock() - self.began_s) * 1e3, 1),
        }

    def _attempt(self, attempt: Try) -> inference_pb2.Attempt:
        lasted = Duration()
        lasted.FromNanoseconds(int(((attempt.ended_s or self.clock()) - attempt.began_s) * 1e9))
        told = inference_pb2.Attempt(
            server=attempt.server,
            zone=attempt.zone,
            epoch=attempt.epoch,
            code=attempt.code.value if attempt.code else 0,
            reason=attempt.failure,
            duration=lasted,
            resume_mode=attempt.resume_mode,
            tokens=attempt.tokens,
            pick=attempt.pick,
        )
        if attempt.waited_ms is not None:
            told.first_token.FromNanoseconds(int(attempt.waited_ms * 1e6))
        return told
