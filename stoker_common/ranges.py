"""The ranges of a generation's numbers, as protos/stoker/v1/generation.proto gives them, and the check against them."""

import math
from dataclasses import dataclass

from google.protobuf.message import Message

from stoker_common.refusal import invalid

MAX_INT32 = 2**31 - 1
# What is not bounded otherwise is bounded by what lists and loops in servers can take.
MAX_OUTPUTS = 64
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Range:
    """From `low` to `high`; `above` says that `low` itself is too small."""

    low: float
    high: float
    above: bool = False

    def contains(self, value: float) -> bool:
        """Whether the value is in the range. NaN and infinities are in none."""
        return math.isfinite(value) and value <= self.high and (value > self.low if self.above else value >= self.low)

    def __str__(self) -> str:
        return (
            f"above {self.low:g} and at most {self.high:.10g}"
            if self.above
            else f"from {self.low:g} to {self.high:.10g}"
        )


_TOKENS = Range(1, MAX_INT32)

SAMPLING = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1, above=True),
    "top_k": Range(0, MAX_INT32),
    "min_p": Range(0, 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0, 10, above=True),
    "max_tokens": _TOKENS,
    "min_tokens": Range(0, MAX_INT32),
    "n": Range(1, MAX_OUTPUTS),
    "logprobs": Range(0, MAX_LOGPROBS),
    "prompt_logprobs": Range(0, MAX_LOGPROBS),
    "truncate_prompt_tokens": _TOKENS,
    "thinking_token_budget": Range(0, MAX_INT32),
    "stream_interval": _TOKENS,
    "prompt_logprob_start": Range(0, MAX_INT32),
}
REPETITION = {
    "max_pattern_size": Range(0, MAX_INT32),
    "min_pattern_size": Range(0, MAX_INT32),
    "min_count": Range(0, MAX_INT32),
}
LOGIT_BIAS = Range(-100, 100)


def check_numbers(path: str, message: Message, ranges: dict[str, Range]) -> set[str]:
    """Refuse the first number in `message` that is set and out of its range. `path` is the message's own. Returns the
    names of all fields that are set."""
    names = set[str]()
    for field, value in message.ListFields():
        name = field.name
        names.add(name)
        limits = ranges.get(name)
        if limits is not None and not limits.contains(value):
            raise invalid(f"{path}.{name}", f"{value:.10g} is not possible; give a number {limits}")
    return names
