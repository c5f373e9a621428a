"""What no server could serve is refused here, by the field that is wrong and with what would be right."""

from collections.abc import Sequence

from google.protobuf.descriptor import EnumDescriptor

from stoker.v1 import generation_pb2
from stoker.v1.generation_pb2 import Generation
from stoker_common.chat import check_chat
from stoker_common.not_yet import check_implemented
from stoker_common.ranges import MAX_INT32
from stoker_common.refusal import invalid
from stoker_common.resume_state import check_resume
from stoker_common.sampling import check_sampling
from stoker_common.structured import check_structured_output
from stoker_common.texts import check_id, check_name, check_request_id, check_size

MAX_MODEL_NAME_BYTES = 256
# Looking through this many takes 50 ms, on the event loop.
MAX_PROMPT_TOKEN_IDS = 1 << 20
MAX_CACHE_SALT_BYTES = 256
MAX_SESSION_ID_BYTES = 256
MAX_TENANT_ID_BYTES = 128


def check_generation(generation: Generation) -> None:
    """Refuse what no server could serve (INVALID_ARGUMENT) and what is not built yet (UNIMPLEMENTED).

    Needs no model: whether the prompt fits and its ids exist is `check_fits`'s to say, once the model is known.
    """
    check_name("generation.model", generation.model, MAX_MODEL_NAME_BYTES)
    check_request_id("generation.request_id", generation.request_id)
    if generation.HasField("resume"):
        check_resume(generation)
    else:
        _check_prompt(generation)
    if generation.HasField("sampling"):
        check_sampling(generation.sampling)
    if generation.HasField("structured_output"):
        check_structured_output(generation.structured_output)
    if generation.lora_adapter:
        check_name("generation.lora_adapter", generation.lora_adapter, MAX_MODEL_NAME_BYTES)
    check_size("generation.cache_salt", generation.cache_salt, MAX_CACHE_SALT_BYTES)
    if generation.HasField("session"):
        check_id("generation.session.id", generation.session.id, MAX_SESSION_ID_BYTES)
        _check_enum("generation.session.mode", generation.session.mode, generation_pb2.SessionMode.DESCRIPTOR)
    if generation.HasField("tenant"):
        check_id("generation.tenant.id", generation.tenant.id, MAX_TENANT_ID_BYTES)
    _check_enum("generation.on_server_failure", generation.on_server_failure, generation_pb2.OnServerFailure.DESCRIPTOR)
    check_implemented(generation)


def check_fits(prompt_token_ids: Sequence[int], max_tokens: int | None, vocabulary: int, max_model_tokens: int) -> int:
    """How many tokens may be generated: `max_tokens`, or what the context leaves if that is less or nothing was asked.

    Refuses a prompt that is empty, leaves no room in a context of `max_model_tokens`, or has an id outside
    [0, vocabulary).
    """
    length = len(prompt_token_ids)
    if length == 0:
        raise invalid("generation.prompt", "has no tokens; give at least one", reason="PROMPT_EMPTY")
    left = max_model_tokens - length
    if left < 1:
        raise invalid(
            "generation.prompt",
            f"has {length:,} tokens; the model's context of {max_model_tokens:,} takes at most "
            f"{max_model_tokens - 1:,} and one to generate",
            reason="PROMPT_TOO_LONG",
        )
    if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= vocabulary:
        at = next(at for at, token_id in enumerate(prompt_token_ids) if not 0 <= token_id < vocabulary)
        raise invalid(
            f"generation.token_ids.ids[{at}]",
            f"{prompt_token_ids[at]} is not a token; the model's ids go from 0 to {vocabulary - 1}",
            reason="TOKEN_ID_OUT_OF_RANGE",
        )
    return left if max_tokens is None else min(max_tokens, left)


def _check_prompt(generation: Generation) -> None:
    form = generation.WhichOneof("prompt")
    if form is None:
        raise invalid("generation.prompt", "is missing; give one of text, token_ids and chat", reason="PROMPT_MISSING")
    if form == "chat":
        check_chat(generation.chat)
    elif form == "text" and not generation.text:
        raise invalid("generation.text", "is empty; give at least one character", reason="PROMPT_EMPTY")
    elif form == "token_ids":
        ids = generation.token_ids.ids
        if not ids:
            raise invalid("generation.token_ids.ids", "is empty; give at least one token id", reason="PROMPT_EMPTY")
        if len(ids) > MAX_PROMPT_TOKEN_IDS:
            text = f"has {len(ids):,} ids; at most {MAX_PROMPT_TOKEN_IDS:,} are possible"
            raise invalid("generation.token_ids.ids", text, reason="PROMPT_TOO_LONG")
        if min(ids) < 0:
            at = next(at for at, token_id in enumerate(ids) if token_id < 0)
            raise invalid(
                f"generation.token_ids.ids[{at}]",
                f"{ids[at]} is not a token id; ids go from 0 to the model's vocabulary, at most {MAX_INT32}",
                reason="TOKEN_ID_OUT_OF_RANGE",
            )


def _check_enum(path: str, value: int, enum: EnumDescriptor) -> None:
    """Refuse a number that the enum does not have: proto3 lets any through."""
    if value not in enum.values_by_number:
        raise invalid(path, f"{value} is not one of its values; give one of {', '.join(enum.values_by_name)}")
