import pytest

from router.sizing import Sizing
from stoker.v1.generation_pb2 import Chat, ChatMessage, ContentPart, Generation, Sampling, TokenIds


def text(prompt: str, **sampling: object) -> Generation:
    return Generation(model="m", text=prompt, sampling=Sampling(**sampling))  # type: ignore[arg-type]


def test_token_ids_are_counted() -> None:
    assert Sizing().prompt_tokens(Generation(model="m", token_ids=TokenIds(ids=[1, 2, 3]))) == 3


def test_text_is_estimated_from_its_bytes_and_the_estimate_is_learned() -> None:
    sizing = Sizing()
    prompt = text("é" * 400)
    assert sizing.prompt_tokens(prompt) == 200
    for _ in range(100):
        sizing.observe_prompt(prompt, 400)
    assert sizing.prompt_tokens(prompt) == pytest.approx(400, rel=0.02)


def test_models_are_learned_apart() -> None:
    sizing = Sizing()
    for _ in range(100):
        sizing.observe_prompt(text("x" * 400), 400)
    assert sizing.prompt_tokens(Generation(model="other", text="x" * 400)) == 100


def test_a_chat_is_its_messages_and_what_the_template_adds() -> None:
    message = ChatMessage(role="user", content=[ContentPart(text="x" * 40), ContentPart(text="y" * 40)])
    assert Sizing().prompt_tokens(Generation(model="m", chat=Chat(messages=[message, message]))) == 40 + 10


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [
        ({}, 256),
        ({"max_tokens": 10}, 10),
        ({"max_tokens": 4000}, 256),
        ({"max_tokens": 4000, "ignore_eos": True}, 4000),
        ({"max_tokens": 4000, "min_tokens": 1000}, 1000),
        ({"max_tokens": 10, "n": 3}, 30),
    ],
)
def test_outputs_are_bounded_by_what_the_request_allows(sampling: dict[str, object], tokens: int) -> None:
    assert Sizing().output_tokens(text("x", **sampling)) == tokens


def test_outputs_are_learned() -> None:
    sizing = Sizing()
    for _ in range(100):
        sizing.observe_output(text("x", n=2), 40)
    assert sizing.output_tokens(text("x")) == pytest.approx(20, abs=1)


def test_nothing_odd_is_learned_from_nothing() -> None:
    sizing = Sizing()
    sizing.observe_prompt(text(""), 5)
    sizing.observe_prompt(text("xxxx"), 0)
    sizing.observe_prompt(Generation(model="m", token_ids=TokenIds(ids=[1])), 1)
    assert sizing.prompt_tokens(text("x" * 400)) == 100
