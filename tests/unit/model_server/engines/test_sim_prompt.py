"""The simulator's prompts: refused before they are tokenised, tokenised off the loop if they are long."""

import pytest

from model_server.engine import EngineRefused
from model_server.engines.sim_prompt import encode
from model_server.engines.sim_settings import SimSettings
from model_server.engines.sim_tokenizer import SimTokenizer
from stoker.v1 import generation_pb2

pytestmark = pytest.mark.unit

SETTINGS = SimSettings(max_streams=4, max_batched_tokens=100, max_model_tokens=1000)
TOKENIZER = SimTokenizer(SETTINGS.vocabulary)


async def test_long_texts_are_encoded_off_the_loop_and_the_same() -> None:
    settings = SETTINGS.model_copy(update={"max_model_tokens": 50_000})
    text = "some words " * 20_000
    chat = generation_pb2.Generation(chat=_said(text))
    ids = await encode(generation_pb2.Generation(text=text), TOKENIZER, settings)
    once = await encode(generation_pb2.Generation(text="some words "), TOKENIZER, settings)
    assert len(ids) == pytest.approx(20_000 * len(once), rel=0.3)
    assert len(await encode(chat, TOKENIZER, settings)) > len(ids)


def _said(text: str) -> generation_pb2.Chat:
    message = generation_pb2.ChatMessage(role="user", content=[generation_pb2.ContentPart(text=text)])
    return generation_pb2.Chat(messages=[message])


@pytest.mark.parametrize(
    ("generation", "field"),
    [
        (generation_pb2.Generation(), "prompt"),
        (generation_pb2.Generation(text=""), "text"),
        (generation_pb2.Generation(text="x" * 16_001), "text"),
        (generation_pb2.Generation(chat=_said("x" * 64_001)), "chat"),
        (generation_pb2.Generation(token_ids=generation_pb2.TokenIds()), "token_ids"),
        (generation_pb2.Generation(token_ids=generation_pb2.TokenIds(ids=[32_000])), "token_ids"),
    ],
)
async def test_prompts_that_cannot_be_are_refused_before_tokenising(
    generation: generation_pb2.Generation, field: str
) -> None:
    with pytest.raises(EngineRefused) as refusal:
        await encode(generation, TOKENIZER, SETTINGS)
    assert refusal.value.field == field
