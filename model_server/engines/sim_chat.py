"""The simulator's chat template: ChatML, with tools and template arguments ahead of the first turn."""

import json

from model_server.engine import EngineRefused
from model_server.engines.sim_tokenizer import TURN_END, TURN_START, SimTokenizer
from stoker.v1 import generation_pb2


def render(chat: generation_pb2.Chat, tokenizer: SimTokenizer) -> list[int]:
    """The conversation's token ids. Raises EngineRefused for images and for arguments that are no JSON object."""
    continued = chat.continue_final_message
    opened = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not continued
    if opened and continued:
        raise EngineRefused(
            "chat.continue_final_message", "continue_final_message and add_generation_prompt exclude each other"
        )
    ids: list[int] = []
    preamble = _preamble(chat)
    if preamble:
        ids += _turn("tools", preamble, tokenizer, closed=True)
    last = len(chat.messages) - 1
    for place, message in enumerate(chat.messages):
        closed = not (continued and place == last)
        ids += _turn(_speaker(message), _said(place, message), tokenizer, closed=closed)
    if opened:
        ids += _turn("assistant", "", tokenizer, closed=False)
    return ids


def _turn(speaker: str, said: str, tokenizer: SimTokenizer, *, closed: bool) -> list[int]:
    # Tokenised by itself, so that what an assistant said keeps its ids when it comes back as history.
    ids = [TURN_START, *tokenizer.encode(speaker + "\n"), *tokenizer.encode(said)]
    if closed:
        ids += (TURN_END, *tokenizer.encode("\n"))
    return ids


def _speaker(message: generation_pb2.ChatMessage) -> str:
    return " ".join(part for part in (message.role, message.name, message.tool_call_id) if part)


def _said(place: int, message: generation_pb2.ChatMessage) -> str:
    texts: list[str] = []
    for index, part in enumerate(message.content):
        if part.WhichOneof("part") == "image":
            field = f"chat.messages[{place}].content[{index}].image"
            raise EngineRefused(field, "the simulator takes no images", unsupported=True)
        texts.append(part.text)
    texts += [f"\n{call.id} {call.name} {call.arguments_json or '{}'}" for call in message.tool_calls]
    return "".join(texts)


def _preamble(chat: generation_pb2.Chat) -> str:
    lines: list[str] = []
    if chat.chat_template_kwargs_json:
        lines.append(_json_object("chat.chat_template_kwargs_json", chat.chat_template_kwargs_json))
    for place, tool in enumerate(chat.tools):
        parameters = tool.parameters_json
        if parameters:
            parameters = _json_object(f"chat.tools[{place}].parameters_json", parameters)
        lines.append(f"{tool.name} {tool.description} {parameters}")
    return "\n".join(lines)


def _json_object(field: str, text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EngineRefused(field, f"not JSON: {error}") from error
    except RecursionError as error:
        raise EngineRefused(field, "JSON nested too deeply") from error
    if not isinstance(value, dict):
        raise EngineRefused(field, "must be a JSON object")
    return text
