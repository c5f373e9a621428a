"""A request's sampling and structured output as vLLM's SamplingParams: every field, nothing dropped in silence."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model_server.engine import EngineRefused, EngineRequest
from model_server.engines import vllm_api
from model_server.engines.vllm_refusal import refusal
from stoker.v1 import generation_pb2

# Stands for a seed of -1, which to vLLM means none. Any other constant would do.
_SEED_MINUS_ONE = -(2**63)
# JSON schema's keywords whose values are schemas by name, and those whose values are none.
_SCHEMAS_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_NO_SCHEMAS = frozenset({"const", "enum", "default", "examples", "required"})


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the installed vLLM, configured as it is, can do for a request."""

    fields: frozenset[str]
    v2_runner: bool
    thinking: bool
    vocabulary: int


def sampling_params(request: EngineRequest, abilities: Abilities) -> Any:
    """The request's vllm.SamplingParams.

    Raises EngineRefused: `unsupported` for what this vLLM cannot do, else for what is wrong with a field.
    """
    arguments = _arguments(request, abilities)
    arguments["structured_outputs"] = _structured_outputs(request.structured_output)
    for name, value in arguments.items():
        if name not in abilities.fields and value is not None:
            raise EngineRefused(f"sampling.{name}", f"vLLM {vllm_api.version()} cannot do it", unsupported=True)
    try:
        return vllm_api.SamplingParams(**{name: value for name, value in arguments.items() if value is not None})
    except vllm_api.REFUSALS as error:
        raise refusal(error) from error


def _arguments(request: EngineRequest, abilities: Abilities) -> dict[str, Any]:
    """Every field of Sampling by vLLM's name for it; None where vLLM's default is the API's."""
    s = request.sampling
    _check(s, abilities)
    return {
        "n": 1,
        "max_tokens": request.max_tokens,
        "output_kind": vllm_api.RequestOutputKind.DELTA,
        # These parameters are this request's alone: vLLM need not copy them.
        "skip_clone": True,
        "temperature": _given(s, "temperature"),
        "top_p": _given(s, "top_p"),
        # Wider than the vocabulary is all of it; the number itself may not fit vLLM's 32 bits.
        "top_k": s.top_k if s.top_k < abilities.vocabulary else 0,
        "min_p": s.min_p,
        "seed": _seed(s),
        "presence_penalty": s.presence_penalty,
        "frequency_penalty": s.frequency_penalty,
        "repetition_penalty": _given(s, "repetition_penalty"),
        "logit_bias": dict(s.logit_bias) or None,
        "min_tokens": s.min_tokens,
        "stop": list(s.stop) or None,
        "stop_token_ids": list(s.stop_token_ids) or None,
        "ignore_eos": s.ignore_eos,
        "include_stop_str_in_output": s.include_stop_str_in_output,
        "logprobs": None if s.logprob_token_ids else _given(s, "logprobs"),
        "prompt_logprobs": _prompt_logprobs(s),
        "bad_words": list(s.bad_words) or None,
        "allowed_token_ids": list(s.allowed_token_ids) or None,
        "skip_special_tokens": _given(s, "skip_special_tokens"),
        "spaces_between_special_tokens": _given(s, "spaces_between_special_tokens"),
        # None lets vLLM skip the cache itself where prompt logprobs need it.
        "skip_reading_prefix_cache": s.skip_reading_prefix_cache or None,
        "logprob_token_ids": list(s.logprob_token_ids) or None,
        "thinking_token_budget": _given(s, "thinking_token_budget"),
        "repetition_detection": _repetition_detection(s),
        # A vLLM without the parameter has no watermark, which is what either value then amounts to.
        "watermarking": _given(s, "watermarking") if "watermarking" in abilities.fields else None,
        "detokenize": _given(s, "detokenize"),
        # An interval of 1 is what a vLLM without the parameter does.
        "stream_interval": s.stream_interval if s.HasField("stream_interval") and s.stream_interval != 1 else None,
        "prompt_logprob_token_ids": _rows(s.prompt_logprob_token_ids) or None,
        # vLLM counts from the token before the first reported one. Without ids of one's own it takes no start: the
        # engine then cuts the list (vllm_output).
        "prompt_logprob_start": s.prompt_logprob_start - 1
        if s.HasField("prompt_logprob_start") and s.prompt_logprob_token_ids
        else None,
    }


def _check(s: generation_pb2.Sampling, abilities: Abilities) -> None:
    """Refuse what vLLM would take for something else, or answer with a failure of its own."""
    for token_id in s.stop_token_ids:
        # vLLM 0.26 takes any, and at min_tokens writes there.
        if not 0 <= token_id < abilities.vocabulary:
            raise EngineRefused("sampling.stop_token_ids", f"has {token_id}: must be in [0, {abilities.vocabulary})")
    if s.logprob_token_ids and s.logprobs > 0:
        raise EngineRefused(
            "sampling.logprob_token_ids",
            "vLLM reports either the likeliest tokens or the listed ones: leave out sampling.logprobs",
            unsupported=True,
        )
    if s.HasField("thinking_token_budget") and not abilities.thinking:
        raise EngineRefused(
            "sampling.thinking_token_budget", "this engine has no reasoning parser configured", unsupported=True
        )
    if s.prompt_logprob_token_ids and not abilities.v2_runner:
        raise EngineRefused("sampling.prompt_logprob_token_ids", "only vLLM's V2 runner does it", unsupported=True)
    if s.HasField("prompt_logprob_start"):
        if s.prompt_logprob_start < 1:
            raise EngineRefused(
                "sampling.prompt_logprob_start",
                f"is {s.prompt_logprob_start}: must be at least 1, since the prompt's first token has no logprob",
            )
        if not (s.HasField("prompt_logprobs") or s.prompt_logprob_token_ids):
            raise EngineRefused(
                "sampling.prompt_logprob_start", "needs sampling.prompt_logprobs or sampling.prompt_logprob_token_ids"
            )


def _given(s: generation_pb2.Sampling, name: str) -> Any:
    """An optional field's value, None if it was not given: vLLM's default is then the API's."""
    return getattr(s, name) if s.HasField(name) else None  # type: ignore[arg-type]  # Names of optional fields only.


def _seed(s: generation_pb2.Sampling) -> int | None:
    if not s.HasField("seed"):
        return None
    return _SEED_MINUS_ONE if s.seed == -1 else s.seed


def _prompt_logprobs(s: generation_pb2.Sampling) -> int | None:
    if s.HasField("prompt_logprobs"):
        return s.prompt_logprobs
    # With ids of one's own, each place still needs its own token's logprob.
    return 0 if s.prompt_logprob_token_ids else None


def _repetition_detection(s: generation_pb2.Sampling) -> Any:
    if not s.HasField("repetition_detection"):
        return None
    r = s.repetition_detection
    if r.max_pattern_size == 0:  # Looks for none.
        return None
    try:
        return vllm_api.RepetitionDetectionParams(
            max_pattern_size=r.max_pattern_size, min_pattern_size=r.min_pattern_size, min_count=r.min_count
        )
    except vllm_api.REFUSALS as error:
        raise refusal(error, field="sampling.repetition_detection") from error


def _rows(lists: Sequence[generation_pb2.TokenIds]) -> list[list[int]]:
    return [list(row.ids) for row in lists]


def _structured_outputs(form: generation_pb2.StructuredOutput | None) -> Any:
    """The form that the output must have, as vLLM's StructuredOutputsParams."""
    if form is None:
        return None
    kind = form.WhichOneof("constraint")
    if kind is None:
        raise EngineRefused(
            "structured_output", "needs one of json_schema, json_object, regex, choice, grammar, structural_tag"
        )
    for option in ("disable_any_whitespace", "whitespace_pattern"):
        if getattr(form, option):
            raise EngineRefused(
                f"structured_output.{option}", "vLLM takes it for a whole engine, not for one request", unsupported=True
            )
    if form.disable_additional_properties and kind != "json_schema":
        raise EngineRefused("structured_output.disable_additional_properties", "goes with json_schema only")
    arguments: dict[str, Any]
    match kind:
        case "json_schema":
            arguments = {"json": _json_schema(form)}
        case "json_object":
            arguments = {"json_object": True}
        case "choice":
            arguments = {"choice": list(form.choice.values)}
        case _:
            arguments = {kind: getattr(form, kind)}
    try:
        return vllm_api.StructuredOutputsParams(**arguments)
    except vllm_api.REFUSALS as error:
        raise refusal(error, field=f"structured_output.{kind}") from error


def _json_schema(form: generation_pb2.StructuredOutput) -> str:
    try:
        schema = json.loads(form.json_schema)
    except (ValueError, RecursionError) as error:
        raise EngineRefused("structured_output.json_schema", f"is not JSON: {error}") from error
    if not isinstance(schema, (dict, bool)):
        raise EngineRefused("structured_output.json_schema", "must be a JSON object")
    if not form.disable_additional_properties:
        return form.json_schema
    try:
        return json.dumps(_closed(schema))
    except RecursionError as error:
        raise EngineRefused("structured_output.json_schema", "is nested too deeply") from error


def _closed(schema: Any) -> Any:
    """The schema with every object that names its properties closed to others."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed_under(key, value) for key, value in schema.items()}
    if "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _closed_under(keyword: str, value: Any) -> Any:
    """What stands under a keyword: schemas by name, values that are no schemas, or schemas."""
    if keyword in _SCHEMAS_BY_NAME and isinstance(value, dict):
        return {name: _closed(schema) for name, schema in value.items()}
    return value if keyword in _NO_SCHEMAS else _closed(value)
