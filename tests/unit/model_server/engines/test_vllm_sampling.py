"""Sampling and structured output as vLLM's parameters, with the installed vLLM."""

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from model_server.engine import EngineRefused, EngineRequest
from model_server.engines.vllm_refusal import refusal
from stoker.v1 import generation_pb2
from tests.fakes.vllm_module import vllm_module

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.timeout(120)]

Sampling, Form, Detection = generation_pb2.Sampling, generation_pb2.StructuredOutput, generation_pb2.RepetitionDetection


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    """The module under test."""
    with vllm_module("vllm_sampling") as found:
        yield found


class Made:
    """What becomes of a request on the installed vLLM, or one with less or more to it."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self.fields: frozenset[str] = module.vllm_api.sampling_fields()

    def params(
        self,
        sampling: generation_pb2.Sampling | None = None,
        form: generation_pb2.StructuredOutput | None = None,
        without: str = "",
        v2_runner: bool = True,
        thinking: bool = True,
    ) -> Any:
        abilities = self._module.Abilities(self.fields - {without}, v2_runner, thinking, vocabulary=1000)
        request = EngineRequest("r", (1, 2), sampling or Sampling(), max_tokens=10, structured_output=form)
        return self._module.sampling_params(request, abilities)

    def refused(self, *args: Any, **kwargs: Any) -> EngineRefused:
        with pytest.raises(EngineRefused) as caught:
            self.params(*args, **kwargs)
        return caught.value


@pytest.fixture(scope="module")
def made(module: ModuleType) -> Made:
    return Made(module)


def test_the_apis_defaults_are_vllms(made: Made) -> None:
    params = made.params()
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.seed) == (1.0, 1.0, 0, 0.0, None)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.0, 0.0, 1.0)
    assert (params.max_tokens, params.min_tokens, params.n) == (10, 0, 1)
    assert (params.detokenize, params.skip_special_tokens, params.spaces_between_special_tokens) == (True, True, True)
    assert (params.logprobs, params.prompt_logprobs, params.structured_outputs) == (None, None, None)
    assert params.output_kind.name == "DELTA"


# For each field of Sampling: a value that is not its default, and what vLLM's parameter of that name is to be.
FIELDS: dict[str, tuple[Any, Any]] = {
    "temperature": (0.5, 0.5),
    "top_p": (0.9, 0.9),
    "top_k": (5, 5),
    "min_p": (0.1, 0.1),
    "seed": (7, 7),
    "presence_penalty": (1.0, 1.0),
    "frequency_penalty": (-1.0, -1.0),
    "repetition_penalty": (1.5, 1.5),
    "logit_bias": ({5: 2.0}, {5: 2.0}),
    "min_tokens": (3, 3),
    "stop": (["a"], ["a"]),
    "stop_token_ids": ([4], [4]),
    "ignore_eos": (True, True),
    "include_stop_str_in_output": (True, True),
    "logprobs": (0, 0),
    "prompt_logprobs": (2, 2),
    "bad_words": (["no"], ["no"]),
    "allowed_token_ids": ([1, 2], [1, 2]),
    "skip_special_tokens": (False, False),
    "spaces_between_special_tokens": (False, False),
    "skip_reading_prefix_cache": (True, True),
    "logprob_token_ids": ([3], [3]),
    "thinking_token_budget": (9, 9),
    "watermarking": (False, False),
    "detokenize": (False, False),
    "stream_interval": (4, 4),
    "prompt_logprob_token_ids": ([{"ids": [1]}, {"ids": [2, 3]}], [[1], [2, 3]]),
}
# Fields that are seen to elsewhere: by the caller of the engine, by the prompt's encoding, by the tests below.
ELSEWHERE = {"max_tokens", "n", "truncate_prompt_tokens", "repetition_detection", "prompt_logprob_start"}


def test_no_field_is_forgotten() -> None:
    assert FIELDS.keys() | ELSEWHERE == {field.name for field in Sampling.DESCRIPTOR.fields}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_reaches_vllm(made: Made, name: str) -> None:
    if name not in made.fields:
        pytest.skip(f"this vLLM has no {name}")
    given, expected = FIELDS[name]
    assert getattr(made.params(Sampling(**{name: given})), name) == expected


@pytest.mark.parametrize("name", ["thinking_token_budget", "stream_interval", "logprob_token_ids", "bad_words"])
def test_what_an_older_vllm_lacks_is_unsupported(made: Made, name: str) -> None:
    refused = made.refused(Sampling(**{name: FIELDS[name][0]}), without=name)
    assert (refused.field, refused.unsupported) == (f"sampling.{name}", True)
    made.params(without=name)


def test_values_that_a_vllm_without_the_parameter_has_anyway_are_taken(made: Made) -> None:
    made.params(Sampling(stream_interval=1), without="stream_interval")
    made.params(Sampling(watermarking=False), without="watermarking")


def test_numbers_that_vllm_reads_otherwise(made: Made) -> None:
    assert made.params(Sampling(top_k=2**40)).top_k == 0
    assert made.params(Sampling(top_k=1000)).top_k == 0
    minus_one = made.params(Sampling(seed=-1)).seed
    assert minus_one is not None
    assert -(2**63) <= minus_one < 2**63


def test_prompt_logprobs_from_a_place_on(made: Made) -> None:
    rows = [generation_pb2.TokenIds(ids=[1])]
    params = made.params(Sampling(prompt_logprob_start=3, prompt_logprob_token_ids=rows))
    assert (params.prompt_logprob_start, params.prompt_logprobs) == (2, 0)
    # vLLM takes a start with ids only; the output is cut instead.
    assert made.params(Sampling(prompt_logprob_start=3, prompt_logprobs=1)).prompt_logprob_start is None
    for sampling in (Sampling(prompt_logprob_start=2), Sampling(prompt_logprob_start=0, prompt_logprobs=1)):
        assert made.refused(sampling).field == "sampling.prompt_logprob_start"


def test_repetition_detection(made: Made) -> None:
    detection = Detection(max_pattern_size=8, min_pattern_size=2, min_count=3)
    found = made.params(Sampling(repetition_detection=detection)).repetition_detection
    assert (found.max_pattern_size, found.min_pattern_size, found.min_count) == (8, 2, 3)
    assert made.params(Sampling(repetition_detection=Detection(min_count=1))).repetition_detection is None
    refused = made.refused(Sampling(repetition_detection=Detection(max_pattern_size=1, min_pattern_size=2)))
    assert refused.field == "sampling.repetition_detection"


@pytest.mark.parametrize(
    ("sampling", "abilities", "field", "unsupported"),
    [
        ({"temperature": 3.0}, {}, "temperature", False),
        ({"temperature": float("nan")}, {}, "temperature", False),
        ({"top_p": 0.0}, {}, "top_p", False),
        ({"top_k": -2}, {}, "top_k", False),
        ({"min_p": 1.5}, {}, "min_p", False),
        ({"presence_penalty": 3.0}, {}, "presence_penalty", False),
        ({"frequency_penalty": 3.0}, {}, "frequency_penalty", False),
        ({"repetition_penalty": 0.0}, {}, "repetition_penalty", False),
        ({"min_tokens": 11}, {}, "min_tokens", False),
        ({"logprobs": -2}, {}, "logprobs", False),
        ({"prompt_logprobs": -2}, {}, "prompt_logprobs", False),
        ({"stop": [""]}, {}, "stop", False),
        ({"stop": ["a"], "detokenize": False}, {}, "stop", False),
        ({"bad_words": [""]}, {}, "bad_words", False),
        ({"logprobs": 2, "logprob_token_ids": [1]}, {}, "logprob_token_ids", True),
        ({"thinking_token_budget": 1}, {"thinking": False}, "thinking_token_budget", True),
        ({"prompt_logprob_token_ids": [{"ids": [1]}]}, {"v2_runner": False}, "prompt_logprob_token_ids", True),
    ],
)
def test_refusals_name_the_field(
    made: Made, sampling: dict[str, Any], abilities: dict[str, bool], field: str, unsupported: bool
) -> None:
    refused = made.refused(Sampling(**sampling), **abilities)
    assert (refused.field, refused.unsupported) == (f"sampling.{field}", unsupported), str(refused)


@pytest.mark.parametrize(
    ("form", "name", "expected"),
    [
        ({"json_schema": '{"type": "object"}'}, "json", '{"type": "object"}'),
        ({"json_object": {}}, "json_object", True),
        ({"regex": "a+"}, "regex", "a+"),
        ({"choice": {"values": ["a", "b"]}}, "choice", ["a", "b"]),
        ({"grammar": "root ::= x"}, "grammar", "root ::= x"),
        ({"structural_tag": '{"a": 1}'}, "structural_tag", '{"a": 1}'),
    ],
)
def test_every_form_reaches_vllm(made: Made, form: dict[str, Any], name: str, expected: Any) -> None:
    assert getattr(made.params(form=Form(**form)).structured_outputs, name) == expected


def test_objects_are_closed_where_asked_and_values_left_alone(made: Made) -> None:
    schema = {
        "properties": {
            "properties": {"type": "object", "properties": {"a": {"const": {"properties": {}}}}},
            "open": {"properties": {}, "additionalProperties": True},
        },
        "anyOf": [{"properties": {"b": {}}}, {"type": "string"}],
    }
    form = Form(json_schema=json.dumps(schema), disable_additional_properties=True)
    assert json.loads(made.params(form=form).structured_outputs.json) == {
        "properties": {
            "properties": {
                "type": "object",
                "properties": {"a": {"const": {"properties": {}}}},
                "additionalProperties": False,
            },
            "open": {"properties": {}, "additionalProperties": True},
        },
        "anyOf": [{"properties": {"b": {}}, "additionalProperties": False}, {"type": "string"}],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("form", "field", "unsupported"),
    [
        ({}, "", False),
        ({"json_schema": "{"}, ".json_schema", False),
        ({"json_schema": "[1]"}, ".json_schema", False),
        ({"regex": "a", "disable_additional_properties": True}, ".disable_additional_properties", False),
        ({"json_object": {}, "disable_any_whitespace": True}, ".disable_any_whitespace", True),
        ({"json_object": {}, "whitespace_pattern": " "}, ".whitespace_pattern", True),
    ],
)
def test_forms_that_are_refused(made: Made, form: dict[str, Any], field: str, unsupported: bool) -> None:
    refused = made.refused(form=Form(**form))
    assert (refused.field, refused.unsupported) == (f"structured_output{field}", unsupported)


class Said(Exception):
    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


@pytest.mark.parametrize(
    ("message", "parameter", "field", "unsupported"),
    [
        ("no", "logit_bias", "sampling.logit_bias", False),
        ("max_tokens must be at least 1, got 0.", None, "sampling.max_tokens", False),
        ("Requested sample logprobs of 30", "logprobs", "sampling.logprobs", False),
        ("The min_p and logit_bias parameters are not yet supported with speculation", None, "sampling.min_p", True),
        ("Invalid grammar specification", None, "structured_output", False),
        ("The decoder prompt is longer than the maximum model length", None, "prompt", False),
        ("Token id 49152 is out of vocabulary", None, "prompt", False),
        ("something else", None, "", False),
    ],
)
def test_vllms_words_are_traced_to_a_field(message: str, parameter: str | None, field: str, unsupported: bool) -> None:
    refused = refusal(Said(message, parameter))
    assert (refused.field, refused.unsupported, str(refused)) == (field, unsupported, message)
