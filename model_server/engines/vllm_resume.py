"""A request that goes on with another engine's output, made ready for vLLM: what to ask of it, what to send first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from model_server.engine import EngineOutput, EngineRefused, EngineRequest, ResumeMode, Take
from model_server.engines import vllm_api
from model_server.engines.vllm_resume_core import REPLAY_KEY, RESTORE_KEY
from stoker.v1 import generation_pb2, inference_pb2

_STOP = inference_pb2.FINISH_REASON_STOP
_LENGTH = inference_pb2.FINISH_REASON_LENGTH
_NOT_ENDED = inference_pb2.FINISH_REASON_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine can take."""

    modes: tuple[ResumeMode, ...]
    vocabulary: int
    max_model_tokens: int


def exact(modes: Sequence[ResumeMode], *, on_cpu: bool, dtype: str) -> tuple[ResumeMode, ...]:
    """The modes whose bytes are an unbroken output's. A processor rounds bf16 differently in prefill and in decode.

    Measured: docs/adr/0026.
    """
    rounds_alike = not on_cpu or dtype == "float32"
    keeping = (ResumeMode.REPLAY, ResumeMode.RESTORE) if rounds_alike else (ResumeMode.REPLAY,)
    return tuple(mode for mode in modes if mode in keeping)


def refuse(request: EngineRequest, limits: Limits) -> None:
    """Raise EngineRefused if the request cannot be resumed, or not so."""
    mode, emitted = request.resume_mode, request.emitted_token_ids
    if mode not in limits.modes:
        raise EngineRefused("resume_mode", f"this engine does not {mode.value}", unsupported=True)
    if min(emitted) < 0 or max(emitted) >= limits.vocabulary:
        raise EngineRefused("emitted_token_ids", f"must be in [0, {limits.vocabulary})")
    most = min(request.max_tokens, limits.max_model_tokens - len(request.prompt_token_ids))
    if len(emitted) > most:
        raise EngineRefused("emitted_token_ids", f"are {len(emitted)}, more than the {most} that the output may have")
    if mode is ResumeMode.REPLAY:
        return
    if request.sampling.HasField("thinking_token_budget"):
        raise EngineRefused("resume_mode", f"{mode.value} loses count of the thinking tokens", unsupported=True)
    if mode is ResumeMode.PREFILL and request.structured_output is not None:
        raise EngineRefused("resume_mode", "prefill loses the form of a structured output", unsupported=True)


def asked(request: EngineRequest) -> EngineRequest:
    """The request as vLLM is asked for it. The client has the prompt's logprobs; PREFILL changes the prompt."""
    sampling = generation_pb2.Sampling()
    sampling.CopyFrom(request.sampling)
    for name in ("prompt_logprobs", "prompt_logprob_start", "prompt_logprob_token_ids"):
        sampling.ClearField(name)
    if request.resume_mode is not ResumeMode.PREFILL:
        return replace(request, sampling=sampling)
    done = len(request.emitted_token_ids)
    sampling.min_tokens = max(0, sampling.min_tokens - done)
    return replace(
        request,
        prompt_token_ids=request.prompt_token_ids + request.emitted_token_ids,
        sampling=sampling,
        # At least one: what is left when nothing is left is never asked for.
        max_tokens=max(1, request.max_tokens - done),
    )


def extra_args(request: EngineRequest) -> dict[str, list[int]] | None:
    """What vLLM's processes are to know of the emitted ids."""
    match request.resume_mode:
        case ResumeMode.RESTORE:
            return {RESTORE_KEY: list(request.emitted_token_ids)}
        case ResumeMode.REPLAY:
            return {REPLAY_KEY: list(request.emitted_token_ids)}
        case ResumeMode.PREFILL:
            return None


def opening(request: EngineRequest, detokenizer: Any, sampling: Any, limits: Limits) -> EngineOutput:
    """The output that covers the emitted ids, with what ended them if something did.

    `detokenizer`, fresh, for the original request, has them all afterwards, and is where what follows goes on.
    `sampling`: the original request's vLLM parameters, which know the model's end-of-text tokens. Raises EngineRefused.
    """
    emitted = request.emitted_token_ids
    most = min(request.max_tokens, limits.max_model_tokens - len(request.prompt_token_ids))
    stop_ids = frozenset(sampling.stop_token_ids or ())
    reason = _NOT_ENDED
    stop_string: str | None = None
    for place, token_id in enumerate(emitted):
        if reason != _NOT_ENDED:
            raise past_the_end(place)
        if token_id == sampling.eos_token_id or token_id in stop_ids:
            reason = _STOP
        elif place + 1 >= most:
            reason = _LENGTH
        stop_string = detokenizer.update([token_id], reason == _STOP)
        if stop_string:
            reason = _STOP
    text = detokenizer.get_next_output_text(reason != _NOT_ENDED, True)
    stopped = reason == _STOP and not stop_string and emitted[-1] in request.sampling.stop_token_ids
    return EngineOutput(
        text=text,
        token_ids=emitted,
        finish_reason=reason,
        stop_string=stop_string or None,
        stop_token_id=emitted[-1] if stopped else None,
    )


def past_the_end(tokens: int) -> EngineRefused:
    """The refusal of emitted ids of which the first so many end the output."""
    return EngineRefused("emitted_token_ids", f"go on past the output's end, which came with token {tokens}")


class Continued:
    """What whoever resumed a request is given of it: first what was emitted elsewhere, then what is new."""

    def __init__(self, request: EngineRequest, opening: EngineOutput | None, take: Take) -> None:
        """`opening`: the output that covers the emitted ids; None where vLLM gives them once more."""
        self._request = request
        self._opening = opening
        self._take = take
        # Of the emitted ids, those that vLLM is to give once more.
        self._left = len(request.emitted_token_ids) if opening is None else 0

    def take(self, output: EngineOutput) -> None:
        """vLLM's next output. Raises EngineRefused if it ends within what was emitted."""
        # vLLM counts the emitted ids as cached too, where it finds them.
        told = output._replace(cached_tokens=min(output.cached_tokens, len(self._request.prompt_token_ids)))
        if self._opening is not None:
            opening, self._opening = self._opening, None
            self._take(
                opening._replace(cached_tokens=told.cached_tokens, queue_ms=told.queue_ms, prefill_ms=told.prefill_ms)
            )
        self._left -= len(told.token_ids)
        if self._left > 0 and told.finish_reason != _NOT_ENDED:
            raise past_the_end(len(self._request.emitted_token_ids) - self._left)
        self._take(told)


class Openings:
    """Detokenizers that have emitted ids, on their way to vLLM, which makes its own for each request."""

    def __init__(self, llm: Any) -> None:
        self._primed: dict[str, Any] = {}
        vllm_api.on_request_added(llm, self._hand_over)

    def add(self, request_id: str, detokenizer: Any) -> None:
        """The request that is about to be made with this id goes on with this detokenizer."""
        self._primed[request_id] = detokenizer

    def forget(self, request_id: str) -> None:
        """The request was made, or never will be."""
        self._primed.pop(request_id, None)

    def _hand_over(self, request_id: str) -> Any:
        return self._primed.pop(request_id, None)
