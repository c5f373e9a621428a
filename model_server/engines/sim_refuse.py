"""What the simulator does not take, refused by the field's name and never ignored."""

from collections.abc import Sequence

from model_server.engine import EngineRefused, EngineRequest
from model_server.engines.sim_settings import SimSettings
from model_server.engines.sim_tokenizer import LONGEST_TOKEN
from stoker.v1 import generation_pb2

MOST_LOGPROBS = 20

_UNSUPPORTED = {
    "logit_bias": "the simulator has no logits to add to",
    "prompt_logprobs": "the simulator has no logprobs of prompts",
    "prompt_logprob_start": "the simulator has no logprobs of prompts",
    "prompt_logprob_token_ids": "the simulator has no logprobs of prompts",
    "logprob_token_ids": "the simulator reports the likeliest tokens only",
    "bad_words": "the simulator cannot avoid words",
    "thinking_token_budget": "the simulator does not think",
    "repetition_detection": "the simulator does not go in circles, nor look for it",
}


def refuse_unsupported(request: EngineRequest) -> None:
    """Raise EngineRefused for a field that the simulator cannot honour."""
    if request.structured_output is not None:
        raise EngineRefused("structured_output", "the simulator does not constrain its output", unsupported=True)
    for descriptor, _ in request.sampling.ListFields():
        message = _UNSUPPORTED.get(descriptor.name)
        if message is not None:
            raise EngineRefused(f"sampling.{descriptor.name}", message, unsupported=True)


def refuse_invalid(request: EngineRequest, settings: SimSettings) -> None:
    """Raise EngineRefused for a value that makes no sense to this engine."""
    prompt = request.prompt_token_ids
    if not prompt:
        raise EngineRefused("prompt", "must not be empty")
    if len(prompt) >= settings.max_model_tokens:
        raise EngineRefused(
            "prompt",
            f"has {len(prompt)} tokens; the context of {settings.max_model_tokens} must leave room for one more",
        )
    refuse_foreign_ids("token_ids", prompt, settings.vocabulary)
    if request.max_tokens < 1:
        raise EngineRefused("sampling.max_tokens", f"is {request.max_tokens}; must be at least 1")
    _refuse_emitted(request, settings)
    sampling = request.sampling
    refuse_foreign_ids("sampling.allowed_token_ids", sampling.allowed_token_ids, settings.vocabulary)
    refuse_foreign_ids("sampling.stop_token_ids", sampling.stop_token_ids, settings.vocabulary)
    if not 0 <= sampling.logprobs <= MOST_LOGPROBS:
        raise EngineRefused("sampling.logprobs", f"is {sampling.logprobs}; must be in [0, {MOST_LOGPROBS}]")
    _refuse_stops(sampling)


def refuse_hopeless(generation: generation_pb2.Generation, field: str, characters: int, settings: SimSettings) -> None:
    """Raise EngineRefused for a prompt that cannot fit whatever its tokens are, before time goes into tokenising it."""
    most = settings.max_model_tokens * LONGEST_TOKEN
    if characters > most and not generation.sampling.HasField("truncate_prompt_tokens"):
        raise EngineRefused(
            field,
            f"has more than {most} characters, which do not fit the context of {settings.max_model_tokens} tokens: "
            "shorten it, or set sampling.truncate_prompt_tokens",
        )


def refuse_foreign_ids(field: str, token_ids: Sequence[int], vocabulary: int) -> None:
    """Raise EngineRefused for an id that is not in [0, vocabulary)."""
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocabulary):
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocabulary)
        raise EngineRefused(field, f"{wrong} is not a token id; must be in [0, {vocabulary})")


def _refuse_emitted(request: EngineRequest, settings: SimSettings) -> None:
    emitted, prompt = request.emitted_token_ids, request.prompt_token_ids
    refuse_foreign_ids("emitted_token_ids", emitted, settings.vocabulary)
    most = min(request.max_tokens, settings.max_model_tokens - len(prompt))
    if len(emitted) > most:
        raise EngineRefused("emitted_token_ids", f"are {len(emitted)}, more than the {most} that the output may have")


def _refuse_stops(sampling: generation_pb2.Sampling) -> None:
    if "" in sampling.stop:
        raise EngineRefused("sampling.stop", "must not hold an empty string")
    if sampling.stop and sampling.HasField("detokenize") and not sampling.detokenize:
        raise EngineRefused("sampling.stop", "stop strings need the text that detokenize=false leaves out")
