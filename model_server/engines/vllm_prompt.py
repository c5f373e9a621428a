"""A prompt's token ids: text through the model's own tokenizer, chat through its own template."""

import asyncio
import copy
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jinja2.exceptions import TemplateError

from model_server.engine import EngineRefused
from stoker.v1 import generation_pb2

# Arguments of `apply_chat_template` that are not the template's: what the API has a field for, what would break the
# rendering, and a template of the caller's own, which is a program that runs here.
_NOT_THE_TEMPLATES = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "padding",
        "processor_kwargs",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
# Off the loop, and not many at once: tokenising holds on to a core.
_THREADS = 2


class PromptEncoder:
    """Turns prompts into token ids, in threads of its own. `close` ends them."""

    def __init__(self, tokenizer: Any, max_model_tokens: int) -> None:
        """`tokenizer`: as Hugging Face's, with `encode`, `get_vocab`, `apply_chat_template`."""
        # The engine detokenises with the original on the loop; a Rust tokenizer cannot be borrowed by two at once.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._max_model_tokens = max_model_tokens
        self._max_token_chars = max((len(token) for token in tokenizer.get_vocab()), default=1)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")
        self._tokenizer.encode("warm up")

    async def encode(self, generation: generation_pb2.Generation) -> list[int]:
        """The prompt's token ids, cut to `truncate_prompt_tokens`. Raises EngineRefused naming the field."""
        match generation.WhichOneof("prompt"):
            case "token_ids":
                ids = list(generation.token_ids.ids)
            case "text":
                ids = await self._in_thread(lambda: self._text(generation))
            case "chat":
                ids = await self._in_thread(lambda: self._chat(generation))
            case _:
                raise EngineRefused("prompt", "needs one of text, token_ids, chat")
        if not ids:
            raise EngineRefused(generation.WhichOneof("prompt") or "prompt", "is empty: give at least one token")
        return ids[-_kept(generation.sampling, len(ids)) :]

    def close(self) -> None:
        """End the threads; what they work on is finished first, and nobody waits for it."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], list[int]]) -> list[int]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _text(self, generation: generation_pb2.Generation) -> list[int]:
        self._check_length("text", generation.text, generation.sampling)
        return list(self._tokenizer.encode(generation.text))

    def _chat(self, generation: generation_pb2.Generation) -> list[int]:
        text = self._render(generation.chat)
        self._check_length("chat", text, generation.sampling)
        # The template has written the special tokens already.
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _check_length(self, field: str, text: str, sampling: generation_pb2.Sampling) -> None:
        """Refuse what cannot fit even in the longest tokens, before it costs seconds to tokenise."""
        if sampling.HasField("truncate_prompt_tokens"):
            return
        most = self._max_model_tokens * self._max_token_chars
        if len(text) > most:
            raise EngineRefused(
                field,
                f"has {len(text)} characters, which do not fit the model's context of {self._max_model_tokens} tokens: "
                "shorten it, or set sampling.truncate_prompt_tokens",
            )

    def _render(self, chat: generation_pb2.Chat) -> str:
        if not getattr(self._tokenizer, "chat_template", None):
            raise EngineRefused("chat", "this model has no chat template: send text or token_ids")
        messages = messages_of(chat)
        extra = template_arguments(chat)
        go_on = chat.continue_final_message
        open_turn = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not go_on
        if go_on and open_turn:
            raise EngineRefused("chat.add_generation_prompt", "excludes chat.continue_final_message")
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    tools=tools_of(chat) or None,
                    add_generation_prompt=open_turn,
                    continue_final_message=go_on,
                    tokenize=False,
                    **extra,
                )
            )
        # What a template does with arguments it was not made for is its own: any of these is the caller's mistake.
        except (TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
            raise EngineRefused(
                "chat", f"the model's chat template does not take it: {type(error).__name__}: {error}"
            ) from error


def messages_of(chat: generation_pb2.Chat) -> list[dict[str, Any]]:
    """The conversation as templates take it. Raises EngineRefused."""
    if not chat.messages:
        raise EngineRefused("chat.messages", "is empty: give at least one message")
    return [_message(message, f"chat.messages[{i}]") for i, message in enumerate(chat.messages)]


def tools_of(chat: generation_pb2.Chat) -> list[dict[str, Any]]:
    """The tools as templates take them: OpenAI's form. Raises EngineRefused."""
    return [_tool(tool, f"chat.tools[{i}]") for i, tool in enumerate(chat.tools)]


def template_arguments(chat: generation_pb2.Chat) -> dict[str, Any]:
    """What the request says to the template itself. Raises EngineRefused."""
    field = "chat.chat_template_kwargs_json"
    if not chat.chat_template_kwargs_json:
        return {}
    arguments = _object(chat.chat_template_kwargs_json, field)
    if taken := sorted(_NOT_THE_TEMPLATES & arguments.keys()):
        raise EngineRefused(field, f"may not have {', '.join(taken)}: not the template's to know")
    return arguments


def _message(message: generation_pb2.ChatMessage, field: str) -> dict[str, Any]:
    if not message.role:
        raise EngineRefused(f"{field}.role", "is empty: name who speaks, such as `user`")
    rendered: dict[str, Any] = {
        "role": message.role,
        # Templates of text models take a string; parts are joined as vLLM joins them.
        "content": "\n".join(_part(part, f"{field}.content[{i}]") for i, part in enumerate(message.content)),
    }
    if message.name:
        rendered["name"] = message.name
    if message.tool_call_id:
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        rendered["tool_calls"] = [_call(call, f"{field}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)]
    return rendered


def _part(part: generation_pb2.ContentPart, field: str) -> str:
    match part.WhichOneof("part"):
        case "text":
            return part.text
        case "image":
            raise EngineRefused(f"{field}.image", "images are not built yet: send text", unsupported=True)
        case _:
            raise EngineRefused(field, "needs one of text, image")


def _call(call: generation_pb2.ToolCall, field: str) -> dict[str, Any]:
    if not call.name:
        raise EngineRefused(f"{field}.name", "is empty: name the tool that was called")
    # An object, not its text: templates write it out themselves.
    arguments = _object(call.arguments_json, f"{field}.arguments_json") if call.arguments_json else {}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool(tool: generation_pb2.Tool, field: str) -> dict[str, Any]:
    if not tool.name:
        raise EngineRefused(f"{field}.name", "is empty: name the tool")
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = (
        _object(tool.parameters_json, f"{field}.parameters_json")
        if tool.parameters_json
        else {"type": "object", "properties": {}}
    )
    return {"type": "function", "function": function}


def _object(text: str, field: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EngineRefused(field, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise EngineRefused(field, f"is JSON of the wrong kind: must be an object, not {type(value).__name__}")
    return value


def _kept(sampling: generation_pb2.Sampling, length: int) -> int:
    """How many of the prompt's last tokens stay."""
    if not sampling.HasField("truncate_prompt_tokens"):
        return length
    kept = sampling.truncate_prompt_tokens
    if kept < 1:
        raise EngineRefused("sampling.truncate_prompt_tokens", f"is {kept}: must be at least 1")
    return min(kept, length)
