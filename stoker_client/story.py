"""One answer as its caller sees it, through however many routers: what came, and what to ask the next one. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from stoker.v1 import generation_pb2, inference_pb2
from stoker_client.errors import StokerError
from stoker_common.refusal import Code
from stoker_common.resuming import Exactness, exactness
from stoker_common.transcript import Transcript

Part = inference_pb2.GenerateStreamResponse

# What gRPC itself says, without ErrorInfo, of a call whose router died, was reset or drained it away.
_LOST = frozenset({Code.UNAVAILABLE, Code.CANCELLED, Code.INTERNAL, Code.UNKNOWN})
# What a router may refuse to go on with that another one, or the same a moment later, does: it has just started.
_NOT_HERE_NOW = frozenset({Code.UNAVAILABLE, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED})


@dataclass(slots=True)
class _Serving:
    """Who serves, as far as the client was told."""

    started: inference_pb2.Started
    began_s: float
    tokens_before: int


class Story:
    """Fed with every part of every call made for one request."""

    def __init__(self, generation: generation_pb2.Generation, clock: Callable[[], float]) -> None:
        self._generation = generation
        self._clock = clock
        self._transcript = Transcript()
        self._started: inference_pb2.Started | None = None
        self._serving: _Serving | None = None
        self._attempts: list[inference_pb2.Attempt] = []
        self._continuations: list[Exactness] = []
        self._classes: list[str] = []
        self._gained = False
        self._finished = False

    @property
    def begun(self) -> bool:
        """Whether the caller has a part of the answer: it is never started over then."""
        return self._started is not None

    @property
    def finished(self) -> bool:
        """Whether the last part has come."""
        return self._finished

    @property
    def gained(self) -> bool:
        """Whether the last call brought anything of the answer."""
        return self._gained

    def request(self) -> generation_pb2.Generation:
        """What to ask the next router: all of it, or what is still to come."""
        self._serving, self._gained = None, False
        if self._started is None:
            return self._generation
        rest = generation_pb2.Generation()
        rest.CopyFrom(self._generation)
        # The state's ids say what the prompt was; the version that began goes on, whatever an alias means by now.
        rest.ClearField("prompt")
        rest.model = self._transcript.model
        rest.request_id = self._started.request_id or rest.request_id
        rest.resume.CopyFrom(self._transcript.resume_state())
        return rest

    def add(self, part: Part) -> Part | None:
        """The next part as the caller shall see it, None if nothing in it is for him. Raises StokerError."""
        told = part
        if part.HasField("started"):
            told = self._start(part)
        self._transcript.add(part)
        self._gained = self._gained or part.HasField("started") or bool(part.deltas)
        if part.HasField("finished"):
            self._finished = True
            # A server that a router picked tells none either.
            routed = self._started is not None and self._started.HasField("pick") and not part.finished.attempts
            if self._attempts or routed:
                told = self._finish(told)
        return told if told.ByteSize() else None

    def broke(self, error: StokerError, who: str, server: inference_pb2.Started | None = None) -> None:
        """A call to `who` ended with `error`; `server` is where it was sent, if that is known without an answer. Raises
        what the caller is to be told, if it is not to go on elsewhere."""
        lost = error.code in _LOST and error.reason == error.code.name
        if server is not None and self._serving is None:
            self._serving = _Serving(server, self._clock(), self._transcript.tokens)
        if self._started is None:
            if error.code is Code.UNAVAILABLE or (lost and error.code is Code.CANCELLED):
                self._note(error, who)
                return
            raise error
        elsewhere = _NOT_HERE_NOW if not self._gained else {Code.UNAVAILABLE}
        if error.reason == "NOT_RESUMABLE" or not (lost or error.code in elsewhere):
            raise error
        self._note(error, who)
        told = f"{who} was lost after {self._transcript.tokens} tokens ({error.message})" if lost else ""
        if self._generation.on_server_failure == generation_pb2.ON_SERVER_FAILURE_FAIL:
            if not told:
                raise error
            text = f"{told}, and the request asks to fail then"
            raise StokerError(Code.UNAVAILABLE, text, reason="ROUTER_LOST") from error
        if not self._transcript.prompt_token_ids:
            text = f"{told or error.message}; it did not tell the prompt's token ids, so no other can go on"
            raise StokerError(Code.UNAVAILABLE, text, reason="NOT_RESUMABLE") from error

    def _start(self, part: Part) -> Part:
        """The part without what the caller was told before."""
        started = part.started
        self._serving = _Serving(started, self._clock(), self._transcript.tokens)
        if started.numerics_class:
            self._classes.append(started.numerics_class)
        if self._started is None:
            self._started = started
            return part
        if started.resume_mode:
            self._continuations.append(started.resume_exactness)
        exact = self._generation.on_server_failure == generation_pb2.ON_SERVER_FAILURE_EXACT
        if exact and started.numerics_class != self._started.numerics_class:
            # A router does not let this happen. A model server that is called itself does not know who began.
            text = f"server {started.server} would go on with other bytes than {self._started.server}"
            raise StokerError(Code.UNAVAILABLE, text, reason="NOT_RESUMABLE")
        return _without(part, "started")

    def _finish(self, part: Part) -> Part:
        """The last part with the attempts through every router."""
        whole = Part()
        whole.CopyFrom(part)
        finished = whole.finished
        if not finished.attempts and self._serving is not None:
            # A model server that was called itself tells none.
            finished.attempts.append(self._attempt(self._serving))
        # What the last router says stands for all servers it tried, and it knows nothing of those before.
        finished.exactness = exactness((*self._continuations, finished.exactness), self._classes)
        attempts = [*self._attempts, *finished.attempts]
        del finished.attempts[:]
        finished.attempts.extend(attempts)
        return whole

    def _note(self, error: StokerError, who: str) -> None:
        """Book the attempt that ended with `error`. One that told no server left no trace to show."""
        if self._serving is not None:
            attempt = self._attempt(self._serving)
            attempt.code, attempt.reason = error.code.value, f"{who}: {error.message}"
            self._attempts.append(attempt)
            self._serving = None

    def _attempt(self, serving: _Serving) -> inference_pb2.Attempt:
        lasted = Duration()
        lasted.FromNanoseconds(int((self._clock() - serving.began_s) * 1e9))
        return inference_pb2.Attempt(
            server=serving.started.server,
            zone=serving.started.zone,
            epoch=serving.started.epoch,
            duration=lasted,
            resume_mode=serving.started.resume_mode,
            tokens=self._transcript.tokens - serving.tokens_before,
        )


def _without(part: Part, field: str) -> Part:
    rest = Part()
    rest.CopyFrom(part)
    rest.ClearField(field)  # type: ignore[arg-type]  # the stubs want a literal
    return rest
