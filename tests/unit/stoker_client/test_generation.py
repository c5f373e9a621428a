"""Keyword arguments into the API's message."""

import pytest

from stoker.v1 import generation_pb2
from stoker_client.errors import StokerError
from stoker_client.generation import SAMPLING, build
from stoker_client.options import Options
from stoker_common.refusal import Code

pytestmark = pytest.mark.unit


def of(**options: object) -> generation_pb2.Generation:
    return build("hello", None, None, "m", options)  # type: ignore[arg-type]  # wrong types are part of what is tried


def test_text() -> None:
    generation = build("hello", None, None, "m", {})
    assert generation == generation_pb2.Generation(model="m", text="hello")


def test_token_ids_may_be_empty_and_still_are_the_prompt() -> None:
    assert build(None, None, [], "m", {}).WhichOneof("prompt") == "token_ids"
    assert list(build(None, None, iter((1, 2)), "m", {}).token_ids.ids) == [1, 2]


def test_messages_in_both_forms() -> None:
    own = generation_pb2.ChatMessage(role="assistant", content=[generation_pb2.ContentPart(text="yes")])
    turns = [{"role": "user", "content": "hi"}, own, {"role": "user", "content": ["a", generation_pb2.ContentPart()]}]
    chat = build(None, turns, None, "m", {"add_generation_prompt": False, "chat_template_kwargs": {"a": 1}}).chat  # type: ignore[arg-type]
    assert [message.role for message in chat.messages] == ["user", "assistant", "user"]
    assert chat.messages[0].content[0].text == "hi"
    assert len(chat.messages[2].content) == 2
    assert chat.HasField("add_generation_prompt") and not chat.add_generation_prompt
    assert chat.chat_template_kwargs_json == '{"a": 1}'


def test_every_sampling_field_has_an_option_and_the_options_have_no_other() -> None:
    assert SAMPLING <= Options.__annotations__.keys()


def test_sampling_keeps_zero_apart_from_unset() -> None:
    sampling = of(temperature=0.0, seed=0, max_tokens=-1).sampling
    assert sampling.HasField("temperature") and sampling.HasField("seed")
    assert sampling.max_tokens == -1
    assert not sampling.HasField("top_p")


def test_lists_maps_and_messages() -> None:
    detection = generation_pb2.RepetitionDetection(min_count=3)
    sampling = of(
        stop="\n",
        bad_words=("x", "y"),
        logit_bias={5: -1.0},
        allowed_token_ids=[1],
        repetition_detection=detection,
        prompt_logprob_token_ids=[[1], [2, 3]],
    ).sampling
    assert list(sampling.stop) == ["\n"]
    assert list(sampling.bad_words) == ["x", "y"]
    assert dict(sampling.logit_bias) == {5: -1.0}
    assert sampling.repetition_detection == detection
    assert [list(ids.ids) for ids in sampling.prompt_logprob_token_ids] == [[1], [2, 3]]


@pytest.mark.parametrize(
    ("options", "constraint"),
    [
        ({"json_schema": {"type": "object"}}, "json_schema"),
        ({"json_schema": "{}"}, "json_schema"),
        ({"json_object": True}, "json_object"),
        ({"regex": "a+"}, "regex"),
        ({"choice": ["a", "b"]}, "choice"),
        ({"grammar": "g"}, "grammar"),
        ({"structured_output": generation_pb2.StructuredOutput(regex="a")}, "regex"),
    ],
)
def test_structured_output(options: dict[str, object], constraint: str) -> None:
    assert of(**options).structured_output.WhichOneof("constraint") == constraint


def test_the_request() -> None:
    generation = of(
        session="s",
        session_mode="hard",
        tenant="t",
        tenant_labels={"a": "b"},
        on_server_failure="exact",
        priority=3,
        request_id="r",
        lora_adapter="l",
        cache_salt="c",
    )
    assert generation.session == generation_pb2.Session(id="s", mode=generation_pb2.SESSION_MODE_HARD)
    assert generation.tenant == generation_pb2.Tenant(id="t", labels={"a": "b"})
    assert generation.on_server_failure == generation_pb2.ON_SERVER_FAILURE_EXACT
    assert (generation.priority, generation.request_id) == (3, "r")
    assert (generation.lora_adapter, generation.cache_salt) == ("l", "c")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": "many"}, "sampling.max_tokens"),
        ({"top_k": 1 << 70}, "sampling.top_k"),
        ({"stop": 5}, "sampling.stop"),
        ({"session": "s", "session_mode": "loose"}, "session.mode"),
        ({"regex": "a", "grammar": "b"}, "structured_output"),
        ({"tools": []}, "tools"),
        ({"logit_bias": {"a": 1}}, "sampling.logit_bias"),
    ],
)
def test_what_the_message_cannot_carry_names_the_field(options: dict[str, object], field: str) -> None:
    with pytest.raises(StokerError) as refused:
        of(**options)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.field == f"generation.{field}"


@pytest.mark.parametrize(("prompt", "token_ids"), [(None, None), ("a", [1])])
def test_exactly_one_prompt(prompt: str | None, token_ids: list[int] | None) -> None:
    with pytest.raises(StokerError) as refused:
        build(prompt, None, token_ids, "m", {})
    assert refused.value.field == "generation.prompt"


def test_token_ids_beyond_32_bits_are_refused_here() -> None:
    with pytest.raises(StokerError) as refused:
        build(None, None, [1 << 40], "m", {})
    assert refused.value.field == "generation.token_ids.ids"


def test_an_argument_that_does_not_exist_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="tempurature"):
        of(tempurature=1.0)
