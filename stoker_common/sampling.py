"""Checks of a generation's sampling."""

from collections.abc import Iterable

from google.protobuf.internal.containers import RepeatedScalarFieldContainer

from stoker.v1.generation_pb2 import RepetitionDetection, Sampling
from stoker_common.ranges import LOGIT_BIAS, REPETITION, SAMPLING, check_numbers
from stoker_common.refusal import invalid
from stoker_common.texts import check_size

MAX_STOPS = 64
MAX_STOP_BYTES = 1024
# Each of these is a row in a table on the GPU, or a scan for each token.
MAX_LOGIT_BIASES = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_BYTES = 1024
MAX_LOGPROB_TOKEN_IDS = 1024
# As many as the largest vocabularies have: a list that allows everything is silly and harmless.
MAX_ALLOWED_TOKEN_IDS = 1 << 18
# Places of the prompt, and ids over all of them.
MAX_PROMPT_LOGPROB_IDS = 1 << 15

_PATH = "generation.sampling"
# What has more to check than a number.
_LISTS = {field.name for field in Sampling.DESCRIPTOR.fields if field.is_repeated or field.message_type is not None}


def check_sampling(sampling: Sampling) -> None:
    """Refuse numbers out of range, fields that contradict each other, and lists that are too long."""
    given = check_numbers(_PATH, sampling, SAMPLING)
    if sampling.HasField("max_tokens") and sampling.min_tokens > sampling.max_tokens:
        raise invalid(
            f"{_PATH}.min_tokens",
            f"{sampling.min_tokens} is more than max_tokens, which is {sampling.max_tokens}; give at most that",
        )
    if given.isdisjoint(_LISTS):
        return  # as most requests have it
    _check_strings("stop", sampling.stop, MAX_STOPS, MAX_STOP_BYTES)
    _check_strings("bad_words", sampling.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_BYTES)
    if sampling.stop and sampling.HasField("detokenize") and not sampling.detokenize:
        raise invalid(f"{_PATH}.stop", "cannot be found without text; leave detokenize on, or use stop_token_ids")
    _check_ids("stop_token_ids", sampling.stop_token_ids, MAX_STOP_TOKEN_IDS)
    _check_ids("allowed_token_ids", sampling.allowed_token_ids, MAX_ALLOWED_TOKEN_IDS)
    _check_ids("logprob_token_ids", sampling.logprob_token_ids, MAX_LOGPROB_TOKEN_IDS)
    _check_prompt_logprob_ids(sampling)
    _check_logit_bias(sampling)
    if sampling.HasField("repetition_detection"):
        _check_repetition(sampling.repetition_detection)


def _check_strings(name: str, values: RepeatedScalarFieldContainer[str], most: int, most_bytes: int) -> None:
    _check_count(name, len(values), most)
    for at, value in enumerate(values):
        if not value:
            raise invalid(f"{_PATH}.{name}[{at}]", "is empty; give at least one character or leave it out")
        check_size(f"{_PATH}.{name}[{at}]", value, most_bytes)


def _check_ids(name: str, ids: RepeatedScalarFieldContainer[int], most: int) -> None:
    _check_count(name, len(ids), most)
    if ids and min(ids) < 0:
        at = _first_negative(ids)
        raise invalid(f"{_PATH}.{name}[{at}]", f"{ids[at]} is not a token id; ids start at 0")


def _check_prompt_logprob_ids(sampling: Sampling) -> None:
    name, places = "prompt_logprob_token_ids", sampling.prompt_logprob_token_ids
    _check_count(name, len(places), MAX_PROMPT_LOGPROB_IDS)
    _check_count(name, sum(len(place.ids) for place in places), MAX_PROMPT_LOGPROB_IDS)
    for at, place in enumerate(places):
        _check_ids(f"{name}[{at}].ids", place.ids, MAX_LOGPROB_TOKEN_IDS)


def _check_logit_bias(sampling: Sampling) -> None:
    _check_count("logit_bias", len(sampling.logit_bias), MAX_LOGIT_BIASES)
    for token_id, bias in sampling.logit_bias.items():
        if token_id < 0:
            raise invalid(f"{_PATH}.logit_bias[{token_id}]", f"{token_id} is not a token id; ids start at 0")
        if not LOGIT_BIAS.contains(bias):
            raise invalid(f"{_PATH}.logit_bias[{token_id}]", f"{bias:.10g} is not possible; give a number {LOGIT_BIAS}")


def _check_repetition(detection: RepetitionDetection) -> None:
    path = f"{_PATH}.repetition_detection"
    check_numbers(path, detection, REPETITION)
    if detection.min_pattern_size > detection.max_pattern_size:
        raise invalid(f"{path}.min_pattern_size", f"{detection.min_pattern_size} is more than max_pattern_size")
    if detection.max_pattern_size > 0 and detection.min_count < 2:
        raise invalid(f"{path}.min_count", f"{detection.min_count} is no repetition; give at least 2")


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise invalid(f"{_PATH}.{name}", f"has {count:,} entries; at most {most:,} are possible")


def _first_negative(ids: Iterable[int]) -> int:
    return next(at for at, token_id in enumerate(ids) if token_id < 0)
