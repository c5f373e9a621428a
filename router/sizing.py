"""How long a prompt and its answer will be, in tokens, learned from what servers report.

The router has no tokenizer. It knows a prompt's bytes, servers say its tokens with each first chunk, and the ratio is
steady for one model. The length of answers is learned the same way and bounded by what the request allows.
"""

from collections import OrderedDict
from dataclasses import dataclass

from stoker.v1 import generation_pb2

# English with the common tokenizers has 3 to 5 bytes a token; the first answers correct it.
_BYTES_PER_TOKEN = 4.0
# A common length of a chat's answer; the first answers correct it.
_OUTPUT_TOKENS = 256.0
# What a chat template adds to a message: role, start and end marks.
_TEMPLATE_TOKENS_PER_MESSAGE = 5
# Weight of a new observation. 1/16 settles within some fifty requests and rides out a single odd one.
_WEIGHT = 1 / 16
# Model names come from requests that servers answered, so they are few; this only bounds a fleet gone wild.
_MAX_MODELS = 1024


@dataclass(slots=True)
class _Learned:
    bytes_per_token: float = _BYTES_PER_TOKEN
    output_tokens: float = _OUTPUT_TOKENS


class Sizing:
    """Estimates lengths for each model and learns from what was observed."""

    def __init__(self) -> None:
        self._learned: OrderedDict[str, _Learned] = OrderedDict()

    def prompt_tokens(self, generation: generation_pb2.Generation) -> int:
        """The prompt's expected length."""
        form = generation.WhichOneof("prompt")
        if form == "token_ids":
            return len(generation.token_ids.ids)
        per_token = self._of(generation.model).bytes_per_token
        template = _TEMPLATE_TOKENS_PER_MESSAGE * len(generation.chat.messages) if form == "chat" else 0
        return max(1, round(_prompt_bytes(generation) / per_token) + template)

    def output_tokens(self, generation: generation_pb2.Generation) -> int:
        """The answer's expected length, over all of its outputs."""
        sampling = generation.sampling
        expected = self._of(generation.model).output_tokens
        if sampling.HasField("max_tokens"):
            expected = sampling.max_tokens if sampling.ignore_eos else min(expected, sampling.max_tokens)
        return max(1, round(max(expected, sampling.min_tokens))) * (sampling.n if sampling.HasField("n") else 1)

    def observe_prompt(self, generation: generation_pb2.Generation, tokens: int) -> None:
        """Learn from a prompt's true length."""
        form = generation.WhichOneof("prompt")
        if form == "chat":
            tokens -= _TEMPLATE_TOKENS_PER_MESSAGE * len(generation.chat.messages)
        size = _prompt_bytes(generation)
        if form == "token_ids" or tokens < 1 or size < 1:
            return
        learned = self._learn(generation.model)
        # The ratio's inverse is what adds up over prompts, so a long prompt counts as one observation like a short one.
        learned.bytes_per_token += _WEIGHT * (size / tokens - learned.bytes_per_token)

    def observe_output(self, generation: generation_pb2.Generation, tokens: int) -> None:
        """Learn from an answer that ran to its end. `tokens` is over all of its outputs."""
        learned = self._learn(generation.model)
        outputs = generation.sampling.n if generation.sampling.HasField("n") else 1
        learned.output_tokens += _WEIGHT * (tokens / outputs - learned.output_tokens)

    def _of(self, model: str) -> _Learned:
        return self._learned.get(model) or _Learned()

    def _learn(self, model: str) -> _Learned:
        learned = self._learned.setdefault(model, _Learned())
        self._learned.move_to_end(model)
        if len(self._learned) > _MAX_MODELS:
            self._learned.popitem(last=False)
        return learned


def _prompt_bytes(generation: generation_pb2.Generation) -> int:
    if generation.WhichOneof("prompt") == "text":
        return len(generation.text.encode())
    chat = generation.chat
    said = sum(len(part.text.encode()) for message in chat.messages for part in message.content)
    tools = sum(len(tool.name) + len(tool.description) + len(tool.parameters_json) for tool in chat.tools)
    return said + tools
