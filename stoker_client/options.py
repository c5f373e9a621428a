"""What a generation can be asked for by keyword: the names are the API's own (protos/stoker/v1/generation.proto)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from stoker.v1 import generation_pb2

# What a turn says: text, or parts of text and images.
TypeOfContent = str | Sequence[str | generation_pb2.ContentPart]


class Turn(TypedDict, total=False):
    """A turn of a conversation in OpenAI's form. `role` is required."""

    role: str
    content: TypeOfContent
    name: str
    tool_calls: Sequence[generation_pb2.ToolCall]
    tool_call_id: str


class Options(TypedDict, total=False):
    """Everything but the prompt and the model. What is left out keeps the API's default."""

    # Sampling: see the message of that name for ranges and defaults.
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    max_tokens: int
    min_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    include_stop_str_in_output: bool
    n: int
    logprobs: int
    prompt_logprobs: int
    bad_words: Sequence[str]
    allowed_token_ids: Sequence[int]
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    truncate_prompt_tokens: int
    skip_reading_prefix_cache: bool
    logprob_token_ids: Sequence[int]
    thinking_token_budget: int
    repetition_detection: generation_pb2.RepetitionDetection
    watermarking: bool
    detokenize: bool
    stream_interval: int
    prompt_logprob_start: int
    prompt_logprob_token_ids: Sequence[Sequence[int]]
    # The output's form: at most one.
    json_schema: str | Mapping[str, Any]
    json_object: bool
    regex: str
    choice: Sequence[str]
    grammar: str
    structural_tag: str
    structured_output: generation_pb2.StructuredOutput
    # With messages.
    tools: Sequence[generation_pb2.Tool]
    chat_template_kwargs: Mapping[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool
    # The request.
    lora_adapter: str
    cache_salt: str
    session: str
    session_mode: Literal["soft", "hard"]
    priority: int
    tenant: str
    tenant_labels: Mapping[str, str]
    on_server_failure: Literal["resume", "exact", "fail"]
    request_id: str
