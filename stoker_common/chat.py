"""Checks of a prompt that is a conversation."""

from stoker.v1.generation_pb2 import Chat, ChatMessage, ContentPart, Tool
from stoker_common.refusal import invalid
from stoker_common.texts import check_id, check_json_object, check_name, check_role, check_size

# All this is checked on the event loop. At these limits, far beyond what people send, it takes 50 ms.
MAX_MESSAGES = 4096
MAX_PARTS = 4096
MAX_TOOLS = 256
MAX_TOOL_CALLS = 1024
MAX_TOTAL_JSON_BYTES = 512 << 10
MAX_TOOL_NAME_BYTES = 256
MAX_ID_BYTES = 256
MAX_MEDIA_TYPE_BYTES = 128

_PATH = "generation.chat"


def check_chat(chat: Chat) -> None:
    """Refuse a conversation that no template could render."""
    if not chat.messages:
        raise invalid(f"{_PATH}.messages", "is empty; give at least one message", reason="PROMPT_EMPTY")
    _check_count("messages", len(chat.messages), MAX_MESSAGES)
    _check_count("messages.content", sum(len(message.content) for message in chat.messages), MAX_PARTS)
    _check_count("messages.tool_calls", sum(len(message.tool_calls) for message in chat.messages), MAX_TOOL_CALLS)
    _check_count("tools", len(chat.tools), MAX_TOOLS)
    _check_total_json(chat)
    for at, message in enumerate(chat.messages):
        _check_message(f"{_PATH}.messages[{at}]", message)
    for at, tool in enumerate(chat.tools):
        _check_tool(f"{_PATH}.tools[{at}]", tool)
    check_json_object(f"{_PATH}.chat_template_kwargs_json", chat.chat_template_kwargs_json)
    if chat.add_generation_prompt and chat.continue_final_message:
        raise invalid(
            f"{_PATH}.add_generation_prompt",
            "opens a new turn while continue_final_message keeps the last one open; set one of them",
        )


def _check_total_json(chat: Chat) -> None:
    size = sum(len(tool.parameters_json) for tool in chat.tools)
    size += sum(len(call.arguments_json) for message in chat.messages for call in message.tool_calls)
    if size > MAX_TOTAL_JSON_BYTES:
        raise invalid(
            f"{_PATH}.tools",
            f"has, with the tool calls, {size:,} characters of JSON; at most {MAX_TOTAL_JSON_BYTES:,} are possible",
        )


def _check_message(path: str, message: ChatMessage) -> None:
    check_role(f"{path}.role", message.role)
    if not message.content and not message.tool_calls:
        raise invalid(f"{path}.content", "is empty; give at least one part", reason="PROMPT_EMPTY")
    for at, part in enumerate(message.content):
        _check_part(f"{path}.content[{at}]", part)
    check_size(f"{path}.name", message.name, MAX_ID_BYTES)
    check_size(f"{path}.tool_call_id", message.tool_call_id, MAX_ID_BYTES)
    for at, call in enumerate(message.tool_calls):
        check_id(f"{path}.tool_calls[{at}].id", call.id, MAX_ID_BYTES)
        check_name(f"{path}.tool_calls[{at}].name", call.name, MAX_TOOL_NAME_BYTES)
        check_json_object(f"{path}.tool_calls[{at}].arguments_json", call.arguments_json)


def _check_part(path: str, part: ContentPart) -> None:
    form = part.WhichOneof("part")
    if form is None:
        raise invalid(path, "is empty; give a text or an image")
    if form == "image":
        if not part.image.data:
            raise invalid(f"{path}.image.data", "is empty; give the encoded file")
        check_name(f"{path}.image.media_type", part.image.media_type, MAX_MEDIA_TYPE_BYTES)


def _check_tool(path: str, tool: Tool) -> None:
    check_name(f"{path}.name", tool.name, MAX_TOOL_NAME_BYTES)
    check_json_object(f"{path}.parameters_json", tool.parameters_json)


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise invalid(f"{_PATH}.{name}", f"has {count:,} entries; at most {most:,} are possible")
