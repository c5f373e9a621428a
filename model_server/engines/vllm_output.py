"""vLLM's outputs as the engine's: text and ids, logprobs, why it ended. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from model_server.engine import EngineDead, EngineError, EngineOutput, EngineRequest
from stoker.v1 import generation_pb2, inference_pb2

_FINISH = {
    "stop": inference_pb2.FINISH_REASON_STOP,
    "length": inference_pb2.FINISH_REASON_LENGTH,
    "repetition": inference_pb2.FINISH_REASON_REPETITION,
}


class EngineFailed(EngineError):
    """This one sequence failed; the engine lives."""

    retryable = True


def engine_output(output: Any, request: EngineRequest, handed_s: float | None = None) -> EngineOutput:
    """One vllm.RequestOutput (deltas, one completion) as an EngineOutput. `handed_s`: when vLLM was given the request,
    by the monotonic clock, which its engine core has as well.

    Raises EngineDead for an end that nobody asked for: a vLLM that is told to go ends its streams as if they were
    done. Raises EngineFailed for a sequence that vLLM gave up.
    """
    completion = output.outputs[0]
    finish_reason: inference_pb2.FinishReason.ValueType = inference_pb2.FINISH_REASON_UNSPECIFIED
    stop_string: str | None = None
    stop_token_id: int | None = None
    if completion.finish_reason is not None:
        finish_reason = _finish_reason(str(completion.finish_reason))
        if isinstance(completion.stop_reason, str):
            stop_string = completion.stop_reason
        # A model's further end-of-text tokens come as a stop too; only the request's own count as one.
        elif completion.stop_reason in request.sampling.stop_token_ids:
            stop_token_id = completion.stop_reason
    return EngineOutput(
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        logprobs=_sampled(completion.logprobs, request.sampling),
        prompt_logprobs=_prompt(output, request),
        finish_reason=finish_reason,
        stop_string=stop_string,
        stop_token_id=stop_token_id,
        cached_tokens=output.num_cached_tokens or 0,
        queue_ms=_queue_ms(output.metrics, handed_s),
        prefill_ms=_prefill_ms(output.metrics),
    )


def _queue_ms(stats: Any, handed_s: float | None) -> float | None:
    """From handing the request over to its first being scheduled; None while that is to come.

    By vLLM's own account it queues once the engine core has taken it in, which it does between steps: the wait for the
    running step, the longer the more prompts are computed, would be nobody's.
    """
    queued, scheduled = getattr(stats, "queued_ts", 0.0), getattr(stats, "scheduled_ts", 0.0)
    since = queued if handed_s is None else min(queued, handed_s)
    return max(scheduled - since, 0.0) * 1000.0 if queued and scheduled else None


def _prefill_ms(stats: Any) -> float | None:
    """From the sequence's first being scheduled to its first token, by the engine core's clock."""
    scheduled, first = getattr(stats, "scheduled_ts", 0.0), getattr(stats, "first_token_ts", 0.0)
    return max(first - scheduled, 0.0) * 1000.0 if scheduled and first else None


def _finish_reason(reason: str) -> inference_pb2.FinishReason.ValueType:
    if reason == "abort":
        raise EngineDead("vLLM ended the stream unasked: its engine process is being stopped from outside")
    if (known := _FINISH.get(reason)) is None:
        raise EngineFailed(f"vLLM gave the sequence up, with finish reason {reason!r}: try again")
    return known


def _sampled(
    places: Sequence[Mapping[int, Any]] | None, sampling: generation_pb2.Sampling
) -> tuple[inference_pb2.TokenLogprobs, ...]:
    if not places:
        return ()
    if sampling.logprob_token_ids:
        return tuple(_listed(place, sampling.logprob_token_ids) for place in places)
    return tuple(_likeliest(place, sampling.logprobs) for place in places)


def _prompt(output: Any, request: EngineRequest) -> tuple[inference_pb2.TokenLogprobs, ...]:
    """The prompt's logprobs from `prompt_logprob_start` on, by default from the second token, the first to have one."""
    places = output.prompt_logprobs
    if not places:
        return ()
    sampling = request.sampling
    start = sampling.prompt_logprob_start if sampling.HasField("prompt_logprob_start") else 1
    converted = [_likeliest(place, sampling.prompt_logprobs) for place in places[start:]]
    rows = getattr(output, "prompt_token_id_logprobs", None)
    if rows is not None:
        for entry, ids, logprobs in zip(converted, sampling.prompt_logprob_token_ids, rows, strict=False):
            entry.top.extend(
                inference_pb2.Logprob(token_id=token_id, logprob=float(logprob))
                for token_id, logprob in zip(ids.ids, logprobs, strict=False)
            )
    return tuple(converted)


def _likeliest(place: Mapping[int, Any], count: int) -> inference_pb2.TokenLogprobs:
    """vLLM's entry for one place: the token itself first, then the likeliest; one entry if it is both."""
    entries = list(place.items())
    top = sorted((e for e in entries if e[1].rank is not None and e[1].rank <= count), key=lambda e: e[1].rank)
    return inference_pb2.TokenLogprobs(token=_logprob(*entries[0]), top=[_logprob(*e) for e in top])


def _listed(place: Mapping[int, Any], wanted: Sequence[int]) -> inference_pb2.TokenLogprobs:
    """The same where the request lists the ids. vLLM then numbers them by place in the list: that is no rank."""
    token_id, first = next(iter(place.items()))
    return inference_pb2.TokenLogprobs(
        token=_logprob(token_id, first, ranked=token_id not in wanted),
        top=[_logprob(i, place[i], ranked=False) for i in dict.fromkeys(wanted) if i in place],
    )


def _logprob(token_id: int, entry: Any, *, ranked: bool = True) -> inference_pb2.Logprob:
    return inference_pb2.Logprob(
        token_id=token_id,
        text=entry.decoded_token or "",
        logprob=entry.logprob,
        rank=(entry.rank or 0) if ranked else 0,
    )
