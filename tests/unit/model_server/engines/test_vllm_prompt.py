"""Prompts as token ids, with a tokenizer that writes down what it was asked."""

import asyncio
from typing import Any

import pytest
from jinja2.exceptions import TemplateError

from model_server.engine import EngineRefused
from model_server.engines.vllm_prompt import PromptEncoder
from stoker.v1 import generation_pb2

pytestmark = pytest.mark.unit


class Tokenizer:
    """One token a character; 0 stands for begin-of-text."""

    chat_template: str | None = "a template"
    rendered: dict[str, Any]
    conversation: list[dict[str, Any]]
    error: Exception | None = None

    def get_vocab(self) -> dict[str, int]:
        return {"a": 97, "long": 1}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [0] * add_special_tokens + [ord(character) for character in text]

    def apply_chat_template(self, conversation: list[dict[str, Any]], **rendered: Any) -> str:
        if self.error is not None:
            raise self.error
        self.conversation, self.rendered = conversation, rendered
        return "rendered"


class Prompts:
    def __init__(self) -> None:
        self.encoder = PromptEncoder(Tokenizer(), max_model_tokens=8)
        self.tokenizer: Tokenizer = self.encoder._tokenizer

    def encode(self, **generation: Any) -> list[int]:
        return asyncio.run(self.encoder.encode(generation_pb2.Generation(**generation)))

    def refused(self, **generation: Any) -> EngineRefused:
        with pytest.raises(EngineRefused) as caught:
            self.encode(**generation)
        return caught.value


@pytest.fixture
def prompts() -> Any:
    made = Prompts()
    yield made
    made.encoder.close()


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages) or [{"role": "user", "content": [{"text": "hi"}]}], **more}


def test_text_has_the_special_tokens_and_ids_pass_as_they_are(prompts: Prompts) -> None:
    assert prompts.encode(text="ab") == [0, 97, 98]
    assert prompts.encode(token_ids={"ids": [5, 6]}) == [5, 6]


def test_chat_is_rendered_and_gets_no_special_tokens_twice(prompts: Prompts) -> None:
    assert prompts.encode(chat=chat()) == [ord(character) for character in "rendered"]
    assert prompts.tokenizer.conversation == [{"role": "user", "content": "hi"}]
    assert prompts.tokenizer.rendered == {
        "tools": None,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "tokenize": False,
    }


def test_tools_and_calls_are_handed_to_the_template(prompts: Prompts) -> None:
    call = {"id": "c1", "name": "weather", "arguments_json": '{"city": "Paris", "a": 1}'}
    prompts.encode(
        chat=chat(
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": [{"text": "sun"}, {"text": "wind"}]},
            tools=[{"name": "weather", "description": "tells it", "parameters_json": '{"type": "object"}'}],
            chat_template_kwargs_json='{"enable_thinking": false}',
        )
    )
    called = {"name": "weather", "arguments": {"city": "Paris", "a": 1}}
    assert prompts.tokenizer.conversation == [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": called}]},
        {"role": "tool", "content": "sun\nwind", "name": "weather", "tool_call_id": "c1"},
    ]
    described = {"name": "weather", "description": "tells it", "parameters": {"type": "object"}}
    assert prompts.tokenizer.rendered["tools"] == [{"type": "function", "function": described}]
    assert prompts.tokenizer.rendered["enable_thinking"] is False


@pytest.mark.parametrize(
    ("asked", "opened", "continued"),
    [
        ({}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": True}, False, True),
    ],
)
def test_the_turn_that_is_left_open(prompts: Prompts, asked: dict[str, bool], opened: bool, continued: bool) -> None:
    prompts.encode(chat=chat(**asked))
    assert prompts.tokenizer.rendered["add_generation_prompt"] is opened
    assert prompts.tokenizer.rendered["continue_final_message"] is continued


def test_truncation_keeps_the_last_tokens(prompts: Prompts) -> None:
    assert prompts.encode(text="abc", sampling={"truncate_prompt_tokens": 2}) == [98, 99]
    assert prompts.encode(text="abc", sampling={"truncate_prompt_tokens": 9}) == [0, 97, 98, 99]
    assert prompts.encode(text="a" * 99, sampling={"truncate_prompt_tokens": 1}) == [97]
    assert prompts.refused(text="a", sampling={"truncate_prompt_tokens": 0}).field == "sampling.truncate_prompt_tokens"


USER = {"role": "user", "content": [{"text": "hi"}]}


@pytest.mark.parametrize(
    ("generation", "field", "unsupported"),
    [
        ({}, "prompt", False),
        ({"token_ids": {}}, "token_ids", False),
        ({"text": "a" * 33}, "text", False),
        ({"chat": {}}, "chat.messages", False),
        ({"chat": chat({"role": ""})}, "chat.messages[0].role", False),
        ({"chat": chat(USER, {"role": "user", "content": [{}]})}, "chat.messages[1].content[0]", False),
        ({"chat": chat({"role": "u", "content": [{"image": {}}]})}, "chat.messages[0].content[0].image", True),
        ({"chat": chat(USER, tools=[{"name": "t", "parameters_json": "["}])}, "chat.tools[0].parameters_json", False),
        ({"chat": chat(USER, tools=[{}])}, "chat.tools[0].name", False),
        (
            {"chat": chat({"role": "a", "tool_calls": [{"name": "t", "arguments_json": "[1]"}]})},
            "chat.messages[0].tool_calls[0].arguments_json",
            False,
        ),
        ({"chat": chat(USER, chat_template_kwargs_json="[]")}, "chat.chat_template_kwargs_json", False),
        (
            {"chat": chat(USER, chat_template_kwargs_json='{"chat_template": "{{ 1 }}"}')},
            "chat.chat_template_kwargs_json",
            False,
        ),
        (
            {"chat": chat(USER, add_generation_prompt=True, continue_final_message=True)},
            "chat.add_generation_prompt",
            False,
        ),
    ],
)
def test_refusals_name_the_field(prompts: Prompts, generation: dict[str, Any], field: str, unsupported: bool) -> None:
    refused = prompts.refused(**generation)
    assert (refused.field, refused.unsupported) == (field, unsupported)


@pytest.mark.parametrize("error", [TemplateError("roles must alternate"), TypeError("no"), KeyError("no")])
def test_what_a_template_does_not_take_is_the_callers_mistake(prompts: Prompts, error: Exception) -> None:
    prompts.tokenizer.error = error
    assert prompts.refused(chat=chat()).field == "chat"


def test_a_model_without_a_template_takes_no_chat(prompts: Prompts) -> None:
    prompts.tokenizer.chat_template = None
    refused = prompts.refused(chat=chat())
    assert (refused.field, refused.unsupported) == ("chat", False)
