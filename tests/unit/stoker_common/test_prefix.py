import struct
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.v1 import generation_pb2 as pb
from stoker_common import prefix

WORDS = "the boilers are hot and the lamps are lit; "


def text(said: str, **fields: object) -> pb.Generation:
    return pb.Generation(model="m", text=said, **fields)  # type: ignore[arg-type]


def ids(*values: int) -> pb.Generation:
    return pb.Generation(model="m", token_ids=pb.TokenIds(ids=values))


def message(role: str, *parts: str, **fields: object) -> pb.ChatMessage:
    return pb.ChatMessage(role=role, content=[pb.ContentPart(text=part) for part in parts], **fields)  # type: ignore[arg-type]


def chat(*messages: pb.ChatMessage, **fields: object) -> pb.Generation:
    return pb.Generation(model="m", chat=pb.Chat(messages=messages, **fields))  # type: ignore[arg-type]


def hashes(generation: pb.Generation, model: str = "m") -> tuple[int, ...]:
    return prefix.of(generation, model).hashes


def common(one: pb.Generation, other: pb.Generation) -> int:
    pairs = zip(hashes(one), hashes(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def test_what_begins_alike_has_a_common_chain_up_to_there() -> None:
    head = WORDS * 100
    one, other = text(head + "one" + WORDS * 40), text(head + "two" + WORDS * 40)
    assert common(one, other) == len(head) // 256
    assert len(hashes(one)) == len(one.text) // 256


def test_a_prompt_shorter_than_a_block_has_no_hash_but_can_grow() -> None:
    short = prefix.of(text("hello"), "m")
    assert short.hashes == ()
    assert short
    assert short.extended((WORDS * 20).encode()).hashes == hashes(text("hello" + WORDS * 20))


@pytest.mark.parametrize(
    "other",
    [
        text(WORDS * 20, cache_salt="another"),
        pb.Generation(model="m", chat=pb.Chat(messages=[message("user", WORDS * 20)])),
    ],
    ids=["salt", "form"],
)
def test_salts_and_forms_share_nothing(other: pb.Generation) -> None:
    assert common(text(WORDS * 20), other) == 0
    assert hashes(other)


def test_an_adapter_is_a_model_whichever_way_it_was_asked_for() -> None:
    by_base = pb.Generation(model="base", lora_adapter="mine", text=WORDS * 20)
    assert hashes(by_base, "mine") == hashes(pb.Generation(model="mine", text=WORDS * 20), "mine")
    assert not set(hashes(by_base, "mine")) & set(hashes(text(WORDS * 20), "base"))


def test_models_share_nothing() -> None:
    assert not set(hashes(text(WORDS * 20), "m@1")) & set(hashes(text(WORDS * 20), "m@2"))


def test_a_next_turn_begins_with_this_one_and_its_answer() -> None:
    system, ask = message("system", WORDS * 30), message("user", WORDS * 10)
    now = chat(system, ask)
    answer = WORDS * 50
    whole = prefix.answered(prefix.of(now, "m"), now, answer, [])
    after = hashes(chat(system, ask, message("assistant", answer), message("user", "and then?")))
    assert len(whole.hashes) > len(hashes(now))
    assert after[: len(whole.hashes)] == whole.hashes


def test_a_message_left_open_goes_on_where_it_was() -> None:
    ask, begun = message("user", WORDS * 10), message("assistant", WORDS * 10)
    now = chat(ask, begun, continue_final_message=True)
    whole = prefix.answered(prefix.of(now, "m"), now, WORDS * 10, [])
    assert whole.hashes == hashes(chat(ask, message("assistant", WORDS * 20)))


def test_texts_and_ids_go_on_with_their_answers() -> None:
    now = text(WORDS * 10)
    assert prefix.answered(prefix.of(now, "m"), now, WORDS * 10, []).hashes == hashes(text(WORDS * 20))
    some = ids(*range(5000))
    whole = prefix.answered(prefix.of(some, "m"), some, "", range(5000, 9000))
    assert whole == prefix.of(ids(*range(9000)), "m")


@pytest.mark.parametrize(
    "one, other",
    [
        (chat(message("user", "a" * 300)), chat(message("assistant", "a" * 300))),
        (chat(message("user", "a" * 300)), chat(message("user", "a" * 300, name="ann"))),
        (chat(message("user", "a" * 150, "a" * 150)), chat(message("user", "a" * 300))),
        (chat(message("user", "a" * 300)), chat(message("user", "a" * 300), chat_template_kwargs_json='{"x": 1}')),
        (
            chat(message("user", "a" * 300), tools=[pb.Tool(name="find")]),
            chat(message("user", "a" * 300), tools=[pb.Tool(name="look")]),
        ),
    ],
    ids=["role", "name", "parts", "arguments", "tools"],
)
def test_whatever_the_template_shows_counts(one: pb.Generation, other: pb.Generation) -> None:
    assert hashes(one)[0] != hashes(other)[0]


def test_an_image_counts_by_its_content() -> None:
    def with_image(data: bytes) -> pb.Generation:
        image = pb.ContentPart(image=pb.Image(data=data, media_type="image/png"))
        return chat(pb.ChatMessage(role="user", content=[image, pb.ContentPart(text="a" * 300)]))

    assert common(with_image(b"one" * 9999), with_image(b"one" * 9999)) == 1
    assert common(with_image(b"one"), with_image(b"two")) == 0


def test_what_cannot_be_told_has_no_chain() -> None:
    cut = text(WORDS * 20, sampling=pb.Sampling(truncate_prompt_tokens=10))
    assert not prefix.of(cut, "m")
    assert not prefix.of(pb.Generation(model="m"), "m")
    assert not prefix.NONE.extended(b"x" * 1000)


def test_tokens_are_shared_out_by_bytes() -> None:
    chain = prefix.of(text("x" * 1000), "m")
    assert [chain.tokens(blocks, 250) for blocks in range(4)] == [0, 64, 128, 192]
    assert prefix.NONE.tokens(0, 250) == 0


def test_a_long_prompts_chain_is_short_and_right_to_a_32nd() -> None:
    chain = prefix.of(text("x" * 400_000), "m")
    assert len(chain.hashes) < 250
    for blocks in range(33, len(chain.hashes)):
        assert chain.tokens(blocks + 1, 400_000) - chain.tokens(blocks, 400_000) <= chain.tokens(blocks, 400_000) / 32


def test_hashes_are_the_same_in_every_process() -> None:
    # Routers and servers of one mesh must agree on these: a change of them is a change of the link's version.
    assert struct.pack("<2Q", *hashes(text("x" * 512))).hex() == "f0b1fdec2b50332bb036d3d57e3903de"
    assert prefix.session_hash("m", "", "s") == 0xA306BFDAE4DC0899


def test_sessions_are_told_apart_by_model_salt_and_id() -> None:
    made = [prefix.session_hash(*parts) for parts in (("m", "", "s"), ("n", "", "s"), ("m", "x", "s"), ("m", "", "t"))]
    assert len(set(made)) == 4
    assert prefix.session_hash("m", "", "") == 0


@given(st.binary(max_size=3000), st.binary(max_size=3000), st.binary(max_size=20_000))
def test_extending_is_the_same_as_hashing_the_whole(first: bytes, second: bytes, third: bytes) -> None:
    start = prefix.of(text("x" * 300), "m")
    assert start.extended(first).extended(second).extended(third) == start.extended(first + second + third)
