"""The simulator's tokenizer and chat template."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server.engine import EngineRefused
from model_server.engines.sim_chat import render
from model_server.engines.sim_text import OutputText
from model_server.engines.sim_tokenizer import (
    FIRST_LEAD,
    FIRST_PLAIN,
    FIRST_TAIL,
    FIRST_WORD,
    SMALLEST_VOCABULARY,
    TURN_START,
    SimTokenizer,
    word,
)
from stoker.v1 import generation_pb2

pytestmark = pytest.mark.unit

TOKENIZER = SimTokenizer(32_000)

# What an output can hold: a lead and its tail, or a token by itself.
_units = st.one_of(
    st.integers(FIRST_PLAIN, TOKENIZER.vocabulary - 1).map(lambda token_id: [token_id]),
    st.tuples(st.integers(FIRST_LEAD, FIRST_TAIL - 1), st.integers(FIRST_TAIL, FIRST_PLAIN - 1)).map(list),
)


@given(st.lists(_units, max_size=40))
def test_what_the_simulator_writes_it_reads_back(units: list[list[int]]) -> None:
    token_ids = [token_id for unit in units for token_id in unit]
    text = OutputText(TOKENIZER, ())
    assert TOKENIZER.encode("".join(text.push(token_id) for token_id in token_ids)) == token_ids


@given(st.text(max_size=200), st.integers(SMALLEST_VOCABULARY, 100_000))
def test_any_text_becomes_ids_of_the_vocabulary(text: str, vocabulary: int) -> None:
    token_ids = SimTokenizer(vocabulary).encode(text)
    assert bool(token_ids) == bool(text)
    assert all(0 <= token_id < vocabulary for token_id in token_ids)


def test_ids_are_the_same_in_every_process() -> None:
    # Written down: a change means new tokens for old prompts, and needs a new numerics class.
    assert TOKENIZER.encode("Hello, what is up? \u6c34") == [18882, 133, 25399, 28330, 4589, 135, 5061, 51, 120]


@pytest.mark.parametrize("rank", [0, 79, 80, 6479, 6480, 518_479, 518_480, 2_000_000])
def test_words_are_each_others_neighbours_and_not_the_same(rank: int) -> None:
    tokenizer = SimTokenizer(10_000_000)
    assert tokenizer.encode(word(rank) + word(rank + 1)) == [FIRST_WORD + rank, FIRST_WORD + rank + 1]


def _chat(
    *turns: tuple[str, str], add_generation_prompt: bool | None = None, continue_final_message: bool = False
) -> generation_pb2.Chat:
    messages = [
        generation_pb2.ChatMessage(role=role, content=[generation_pb2.ContentPart(text=text)]) for role, text in turns
    ]
    return generation_pb2.Chat(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
    )


def test_the_next_turn_begins_with_what_was_asked_and_answered() -> None:
    asked = render(_chat(("user", "What is hot?")), TOKENIZER)
    answer = [FIRST_WORD + 7, FIRST_WORD + 4000, FIRST_LEAD + 3, FIRST_TAIL + 9, FIRST_WORD + 31]
    text = OutputText(TOKENIZER, ())
    answered = "".join(text.push(token_id) for token_id in answer)
    following = render(_chat(("user", "What is hot?"), ("assistant", answered), ("user", "Why?")), TOKENIZER)
    assert following[: len(asked) + len(answer)] == asked + answer


def test_a_continued_message_stays_open() -> None:
    closed = render(_chat(("assistant", "So I"), add_generation_prompt=False), TOKENIZER)
    opened = render(_chat(("assistant", "So I"), continue_final_message=True), TOKENIZER)
    assert closed[: len(opened)] == opened
    assert opened.count(TURN_START) == 1


def test_tools_and_template_arguments_change_the_prompt() -> None:
    plain = _chat(("user", "Hi"))
    tooled = _chat(("user", "Hi"))
    tooled.tools.append(generation_pb2.Tool(name="look", parameters_json='{"type": "object"}'))
    argued = _chat(("user", "Hi"))
    argued.chat_template_kwargs_json = '{"enable_thinking": false}'
    assert len({tuple(render(chat, TOKENIZER)) for chat in (plain, tooled, argued)}) == 3


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "NaN"])
def test_template_arguments_must_be_an_object(text: str) -> None:
    chat = _chat(("user", "Hi"))
    chat.chat_template_kwargs_json = text
    with pytest.raises(EngineRefused) as refusal:
        render(chat, TOKENIZER)
    assert refusal.value.field == "chat.chat_template_kwargs_json"
    assert not refusal.value.unsupported


def test_images_are_refused_by_their_place() -> None:
    chat = _chat(("user", "Look"))
    chat.messages[0].content.append(
        generation_pb2.ContentPart(image=generation_pb2.Image(data=b"x", media_type="image/png"))
    )
    with pytest.raises(EngineRefused) as refusal:
        render(chat, TOKENIZER)
    assert refusal.value.field == "chat.messages[0].content[1].image"
    assert refusal.value.unsupported


def test_a_message_cannot_both_stay_open_and_be_answered() -> None:
    with pytest.raises(EngineRefused):
        render(_chat(("user", "Hi"), continue_final_message=True, add_generation_prompt=True), TOKENIZER)
