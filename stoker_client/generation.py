"""Keyword arguments into the API's `Generation`. What a value must be is the servers' to say; this only shapes it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stoker.v1 import generation_pb2
from stoker_client.errors import StokerError
from stoker_client.options import Options, Turn, TypeOfContent
from stoker_common.refusal import Code

CONSTRAINTS = ("json_schema", "json_object", "regex", "choice", "grammar", "structural_tag")
CHAT_ONLY = ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
REQUEST = ("lora_adapter", "cache_salt", "priority", "request_id")
SAMPLING = frozenset(field.name for field in generation_pb2.Sampling.DESCRIPTOR.fields)


def build(
    prompt: str | None,
    messages: Iterable[Turn | generation_pb2.ChatMessage] | None,
    token_ids: Iterable[int] | None,
    model: str,
    options: Options,
) -> generation_pb2.Generation:
    """The message for these arguments.

    Raises StokerError (INVALID_ARGUMENT, with the field) for what the message cannot carry, TypeError for an argument
    that does not exist.
    """
    given: dict[str, Any] = dict(options)
    generation = generation_pb2.Generation(model=model)
    _set_prompt(generation, prompt, messages, token_ids, given)
    _set_request(generation, given)
    _set_constraint(generation, given)
    for name in SAMPLING & given.keys():
        _assign(generation.sampling, name, given.pop(name), f"sampling.{name}")
    if given:
        raise TypeError(f"unexpected keyword argument {next(iter(given))!r}; stoker_client.Options lists what there is")
    return generation


def _set_prompt(
    generation: generation_pb2.Generation,
    prompt: str | None,
    messages: Iterable[Turn | generation_pb2.ChatMessage] | None,
    token_ids: Iterable[int] | None,
    given: dict[str, Any],
) -> None:
    forms = [form for form in (prompt, messages, token_ids) if form is not None]
    if len(forms) != 1:
        raise _invalid("prompt", f"give exactly one of prompt, messages and token_ids, not {len(forms)}")
    if messages is None:
        for name in CHAT_ONLY:
            if name in given:
                raise _invalid(name, f"{name} goes with messages, and the prompt is not a conversation")
    if prompt is not None:
        _assign(generation, "text", prompt, "text")
    elif token_ids is not None:
        generation.token_ids.SetInParent()
        _assign(generation.token_ids, "ids", list(token_ids), "token_ids.ids")
    elif messages is not None:
        generation.chat.SetInParent()
        generation.chat.messages.extend(_message(turn) for turn in messages)
        generation.chat.tools.extend(given.pop("tools", ()))
        if "chat_template_kwargs" in given:
            generation.chat.chat_template_kwargs_json = json.dumps(given.pop("chat_template_kwargs"))
        for name in ("add_generation_prompt", "continue_final_message"):
            if name in given:
                _assign(generation.chat, name, given.pop(name), f"chat.{name}")


def _message(turn: Turn | generation_pb2.ChatMessage) -> generation_pb2.ChatMessage:
    if isinstance(turn, generation_pb2.ChatMessage):
        return turn
    try:
        return generation_pb2.ChatMessage(
            role=turn.get("role", ""),
            content=_content(turn.get("content", "")),
            name=turn.get("name", ""),
            tool_calls=turn.get("tool_calls", ()),
            tool_call_id=turn.get("tool_call_id", ""),
        )
    except (TypeError, ValueError) as error:
        raise _invalid("chat.messages", f"a message does not fit the API: {error}") from error


def _content(content: TypeOfContent) -> list[generation_pb2.ContentPart]:
    if isinstance(content, str):
        return [generation_pb2.ContentPart(text=content)] if content else []
    return [generation_pb2.ContentPart(text=part) if isinstance(part, str) else part for part in content]


def _set_request(generation: generation_pb2.Generation, given: dict[str, Any]) -> None:
    for name in REQUEST:
        if name in given:
            _assign(generation, name, given.pop(name), name)
    if "session" in given or "session_mode" in given:
        _assign(generation.session, "id", given.pop("session", ""), "session.id")
        mode = given.pop("session_mode", "soft")
        generation.session.mode = _enum(generation_pb2.SessionMode, "SESSION_MODE", mode, "session.mode")
    if "tenant" in given or "tenant_labels" in given:
        _assign(generation.tenant, "id", given.pop("tenant", ""), "tenant.id")
        _assign(generation.tenant, "labels", given.pop("tenant_labels", {}), "tenant.labels")
    if "on_server_failure" in given:
        generation.on_server_failure = _enum(
            generation_pb2.OnServerFailure, "ON_SERVER_FAILURE", given.pop("on_server_failure"), "on_server_failure"
        )


def _set_constraint(generation: generation_pb2.Generation, given: dict[str, Any]) -> None:
    if "structured_output" in given:
        generation.structured_output.CopyFrom(given.pop("structured_output"))
    constraints = [name for name in CONSTRAINTS if name in given]
    if len(constraints) > 1:
        raise _invalid("structured_output", f"give one constraint, not {' and '.join(constraints)}")
    output = generation.structured_output
    for name in constraints:
        value = given.pop(name)
        if name == "json_object":
            if value:
                output.json_object.SetInParent()
        elif name == "choice":
            output.choice.SetInParent()
            _assign(output.choice, "values", value, "structured_output.choice")
        elif name == "json_schema" and isinstance(value, Mapping):
            output.json_schema = json.dumps(value)
        else:
            _assign(output, name, value, f"structured_output.{name}")


def _assign(message: Any, name: str, value: Any, field: str) -> None:
    """Put `value` where it belongs, whatever the field's form. The message is Any: its fields go by name here."""
    try:
        if name == "prompt_logprob_token_ids":
            message.prompt_logprob_token_ids.extend(generation_pb2.TokenIds(ids=ids) for ids in value)
        elif isinstance(value, generation_pb2.RepetitionDetection):
            getattr(message, name).CopyFrom(value)
        elif isinstance(value, Mapping):
            getattr(message, name).update(value)
        elif name in ("stop", "bad_words") and isinstance(value, str):
            getattr(message, name).append(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError, AttributeError) as error:
        raise _invalid(field, f"generation.{field}: does not fit the API: {error}") from error


def _enum(enum: Any, prefix: str, word: str, field: str) -> Any:
    """The enum's value for a lower-case word. Any: enum wrappers have no common type that mypy knows."""
    words = [name.removeprefix(f"{prefix}_").lower() for name in enum.keys() if not name.endswith("UNSPECIFIED")]
    if word not in words:
        raise _invalid(field, f"generation.{field}: must be one of {', '.join(words)}, not {word!r}")
    return enum.Value(f"{prefix}_{word.upper()}")


def _invalid(field: str, message: str) -> StokerError:
    # The path that servers give for the same mistake.
    return StokerError(Code.INVALID_ARGUMENT, message, reason="INVALID_FIELD", field=f"generation.{field}")
