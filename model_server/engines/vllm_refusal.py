"""What vLLM says against a request, as an EngineRefused that names the API's field, and what it does not say."""

import re

from model_server.engine import EngineInfo, EngineRefused, EngineRequest

# Parameters that have another name, or another place, in the API.
_FIELDS = {
    "prompt": "prompt",
    "prompt_token_ids": "token_ids",
    "token_ids": "token_ids",
    "input_tokens": "token_ids",
    "priority": "priority",
    "cache_salt": "cache_salt",
    "lora_request": "lora_adapter",
}
_SAMPLING = (
    "temperature|top_p|top_k|min_p|seed|presence_penalty|frequency_penalty|repetition_penalty|logit_bias|max_tokens|"
    "min_tokens|stop_token_ids|stop|ignore_eos|n|prompt_logprob_token_ids|prompt_logprob_start|prompt_logprobs|"
    "logprob_token_ids|logprobs|bad_words|allowed_token_ids|thinking_token_budget|repetition_detection|watermarking|"
    "detokenize|stream_interval"
)
_NAMED = re.compile(rf"(?:^|\W)({_SAMPLING})(?:$|\W)")
_ABOUT_STRUCTURE = re.compile(
    r"structured.?output|json.?schema|grammar|regex|choice|xgrammar|structural.?tag|guidance|outlines", re.IGNORECASE
)
_ABOUT_PROMPT = re.compile(r"prompt|context length|maximum model length|out of vocabulary", re.IGNORECASE)
_CANNOT = re.compile(
    r"not (?:yet )?supported|does not support|not configured|is not enabled|unsupported", re.IGNORECASE
)


def refusal(error: BaseException, *, field: str = "") -> EngineRefused:
    """The refusal that vLLM's error amounts to. `field`: its path if known, else it is read from the error."""
    message = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return EngineRefused(field or _field(error, message), message, unsupported=bool(_CANNOT.search(message)))


def refused(error: BaseException, request: EngineRequest) -> EngineRefused:
    """The refusal of this request that vLLM's error amounts to."""
    found = refusal(error)
    form = request.structured_output
    # What names no field: a form that is no JSON, in 0.26.
    if found.field in ("structured_output", "") and form is not None and (kind := form.WhichOneof("constraint")):
        return EngineRefused(f"structured_output.{kind}", str(found), unsupported=found.unsupported)
    return found


def refuse_foreign(prompt_token_ids: tuple[int, ...], info: EngineInfo) -> None:
    """Refuse a prompt that is none of this model's. vLLM 0.26 takes any id, and its kernels die of it."""
    if not prompt_token_ids or min(prompt_token_ids) < 0 or max(prompt_token_ids) >= info.vocabulary:
        raise EngineRefused("token_ids", f"is empty or has an id that is not in [0, {info.vocabulary})")
    if len(prompt_token_ids) >= info.max_model_tokens:
        raise EngineRefused(
            "prompt",
            f"has {len(prompt_token_ids)} tokens; the context of {info.max_model_tokens} must leave room for one more",
        )


def _field(error: BaseException, message: str) -> str:
    parameter = getattr(error, "parameter", None)
    if isinstance(parameter, str) and parameter:
        if parameter in _FIELDS:
            return _FIELDS[parameter]
        if re.fullmatch(_SAMPLING, parameter):
            return f"sampling.{parameter}"
    if (named := _NAMED.match(message)) is not None:
        return f"sampling.{named[1]}"
    if _ABOUT_STRUCTURE.search(message):
        return "structured_output"
    if (named := _NAMED.search(message)) is not None and named[1] != "n":
        return f"sampling.{named[1]}"
    return "prompt" if _ABOUT_PROMPT.search(message) else ""
