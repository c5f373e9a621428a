"""Every refusal of a generation: its code, its field, and that the message says what would be right."""

import math
from typing import Any

import pytest

from stoker.v1 import generation_pb2 as pb
from stoker_common.chat import MAX_TOTAL_JSON_BYTES
from stoker_common.refusal import Code, Refusal
from stoker_common.texts import MAX_JSON_BYTES
from stoker_common.validate import MAX_PROMPT_TOKEN_IDS, check_fits, check_generation

pytestmark = pytest.mark.unit

Message = pb.ChatMessage
USER = Message(role="user", content=[pb.ContentPart(text="hello")])


def generation(**fields: Any) -> pb.Generation:
    """A generation that is fine but for `fields`."""
    if not {"text", "token_ids", "chat"} & set(fields):
        fields["text"] = "hello"
    return pb.Generation(**{"model": "chat", **fields})


def sampled(**fields: Any) -> pb.Generation:
    return generation(sampling=pb.Sampling(**fields))


def chatting(*messages: Message, **fields: Any) -> pb.Generation:
    return generation(chat=pb.Chat(messages=messages or [USER], **fields))


def structured(**fields: Any) -> pb.Generation:
    return generation(structured_output=pb.StructuredOutput(**fields))


def tool(parameters_json: str, name: str = "search") -> pb.Generation:
    return chatting(tools=[pb.Tool(name=name, parameters_json=parameters_json)])


IMAGE = Message(role="user", content=[pb.ContentPart(image=pb.Image(data=b"\x89PNG", media_type="image/png"))])
CIRCLES = pb.RepetitionDetection
S = "generation.sampling"
C = "generation.chat"
O = "generation.structured_output"  # noqa: E741 - as short as its neighbours

INVALID = [
    # The prompt.
    (pb.Generation(model="chat"), "generation.prompt", "one of text, token_ids and chat"),
    (generation(text=""), "generation.text", "at least one character"),
    (generation(token_ids=pb.TokenIds()), "generation.token_ids.ids", "at least one token id"),
    (generation(token_ids=pb.TokenIds(ids=[5, -1])), "generation.token_ids.ids[1]", "ids go from 0"),
    (generation(token_ids=pb.TokenIds(ids=[1] * (MAX_PROMPT_TOKEN_IDS + 1))), "generation.token_ids.ids", "at most"),
    (generation(chat=pb.Chat()), f"{C}.messages", "at least one message"),
    (chatting(Message(role="user")), f"{C}.messages[0].content", "at least one part"),
    (chatting(USER, Message(role="user", content=[pb.ContentPart()])), f"{C}.messages[1].content[0]", "a text or an"),
    (chatting(Message(content=USER.content)), f"{C}.messages[0].role", "'user'"),
    (chatting(Message(role="us er", content=USER.content)), f"{C}.messages[0].role", "'user'"),
    (chatting(Message(role="r" * 65, content=USER.content)), f"{C}.messages[0].role", "'user'"),
    (chatting(*[USER] * 5000), f"{C}.messages", "at most 4,096"),
    (chatting(Message(role="user", content=[pb.ContentPart(text="x")] * 5000)), f"{C}.messages.content", "4,096"),
    (
        chatting(Message(role="user", content=[pb.ContentPart(image=pb.Image())])),
        f"{C}.messages[0].content[0].image.data",
        "file",
    ),
    (
        chatting(Message(role="assistant", tool_calls=[pb.ToolCall(name="f")])),
        f"{C}.messages[0].tool_calls[0].id",
        "an id",
    ),
    (
        chatting(Message(role="assistant", tool_calls=[pb.ToolCall(id="1")])),
        f"{C}.messages[0].tool_calls[0].name",
        "a name",
    ),
    (
        chatting(Message(role="assistant", tool_calls=[pb.ToolCall(id="1", name="f", arguments_json="[]")])),
        f"{C}.messages[0].tool_calls[0].arguments_json",
        "JSON object",
    ),
    (
        chatting(Message(role="assistant", tool_calls=[pb.ToolCall(id="1", name="f")] * 1025)),
        f"{C}.messages.tool_calls",
        "1,024",
    ),
    (chatting(add_generation_prompt=True, continue_final_message=True), f"{C}.add_generation_prompt", "one of them"),
    (chatting(chat_template_kwargs_json="3"), f"{C}.chat_template_kwargs_json", "JSON object"),
    (tool("{}", name=""), f"{C}.tools[0].name", "a name"),
    (tool("{"), f"{C}.tools[0].parameters_json", "valid JSON"),
    (tool("[1]"), f"{C}.tools[0].parameters_json", "JSON object"),
    (tool('{"a": NaN}'), f"{C}.tools[0].parameters_json", "valid JSON"),
    (tool('{"a": ' + "1" * 5000 + "}"), f"{C}.tools[0].parameters_json", "valid JSON"),
    (tool('{"a":' * 65 + "1" + "}" * 65), f"{C}.tools[0].parameters_json", "at most 64 levels"),
    (tool('{"a":' + "[" * 20_000 + "]" * 20_000 + "}"), f"{C}.tools[0].parameters_json", "at most 64 levels"),
    (tool('{"a":"' + "x" * MAX_JSON_BYTES + '"}'), f"{C}.tools[0].parameters_json", "at most 131,072"),
    (
        chatting(tools=[pb.Tool(name="f", parameters_json="{}" + " " * 100_000)] * 6),
        f"{C}.tools",
        f"{MAX_TOTAL_JSON_BYTES:,}",
    ),
    (chatting(tools=[pb.Tool(name="f")] * 257), f"{C}.tools", "at most 256"),
    # The model.
    (generation(model=""), "generation.model", "give a name"),
    *[
        (generation(model=name), "generation.model", "slashes")
        for name in ("../etc", "a/../b", "/etc/passwd", "a//b", "a/", "..", "a\\..\\b", "./a")
    ],
    *[
        (generation(model=name), "generation.model", "printable")
        for name in ("a\nb", "a b", "\x1b[0m", "a\u202eb", "a\0")
    ],
    (generation(model="m" * 257), "generation.model", "at most 256"),
    (generation(model="é" * 129), "generation.model", "at most 256"),
    # Sampling.
    *[
        (sampled(**{name: value}), f"{S}.{name}", "give a number")
        for name, values in {
            "max_tokens": (0, -1, 2**31, 2**63 - 1),
            "min_tokens": (-1, 2**31),
            "temperature": (-1.0, -0.001, 2.001, math.nan, math.inf, -math.inf),
            "top_p": (0.0, -0.1, 1.01, math.nan, math.inf),
            "top_k": (-1, 2**31),
            "min_p": (-0.1, 1.1, math.nan),
            "presence_penalty": (-2.1, 2.1, math.nan),
            "frequency_penalty": (-2.1, 2.1, math.inf),
            "repetition_penalty": (0.0, -1.0, 10.1, math.nan),
            "n": (0, -1, 65, 10**6),
            "logprobs": (-1, 21, 10**6),
            "prompt_logprobs": (-1, 21),
            "truncate_prompt_tokens": (0, -1),
            "thinking_token_budget": (-1,),
            "stream_interval": (0, -1),
            "prompt_logprob_start": (-1,),
        }.items()
        for value in values
    ],
    (sampled(min_tokens=11, max_tokens=10), f"{S}.min_tokens", "at most that"),
    (sampled(stop=["x"] * 65), f"{S}.stop", "at most 64"),
    (sampled(stop=["x"] * 100_000), f"{S}.stop", "at most 64"),
    (sampled(stop=["a", ""]), f"{S}.stop[1]", "at least one character"),
    (sampled(stop=["x" * 1025]), f"{S}.stop[0]", "at most 1,024"),
    (sampled(stop=["x"], detokenize=False), f"{S}.stop", "stop_token_ids"),
    (sampled(bad_words=[""]), f"{S}.bad_words[0]", "at least one character"),
    (sampled(stop_token_ids=[3, -1]), f"{S}.stop_token_ids[1]", "start at 0"),
    (sampled(allowed_token_ids=[-5]), f"{S}.allowed_token_ids[0]", "start at 0"),
    (sampled(logprob_token_ids=range(1025)), f"{S}.logprob_token_ids", "at most 1,024"),
    (sampled(prompt_logprob_token_ids=[pb.TokenIds(ids=[-1])]), f"{S}.prompt_logprob_token_ids[0].ids[0]", "at 0"),
    (sampled(prompt_logprob_token_ids=[pb.TokenIds()] * 40_000), f"{S}.prompt_logprob_token_ids", "at most 32,768"),
    (sampled(logit_bias={1: 100.5}), f"{S}.logit_bias[1]", "from -100 to 100"),
    (sampled(logit_bias={1: math.nan}), f"{S}.logit_bias[1]", "from -100 to 100"),
    (sampled(logit_bias={-1: 1.0}), f"{S}.logit_bias[-1]", "start at 0"),
    (sampled(logit_bias=dict.fromkeys(range(1025), 1.0)), f"{S}.logit_bias", "at most 1,024"),
    (
        sampled(repetition_detection=CIRCLES(max_pattern_size=-1)),
        f"{S}.repetition_detection.max_pattern_size",
        "from 0",
    ),
    (sampled(repetition_detection=CIRCLES(min_pattern_size=2)), f"{S}.repetition_detection.min_pattern_size", "max_"),
    (
        sampled(repetition_detection=CIRCLES(max_pattern_size=2, min_count=1)),
        f"{S}.repetition_detection.min_count",
        "2",
    ),
    # Structured output.
    (structured(), O, "give one of json_schema"),
    (structured(json_schema=""), f"{O}.json_schema", "leave structured_output out"),
    (structured(json_schema="{"), f"{O}.json_schema", "valid JSON"),
    (structured(json_schema="[]"), f"{O}.json_schema", "JSON object"),
    (structured(json_schema="[" * 100_000), f"{O}.json_schema", "at most 64 levels"),
    (structured(json_schema='"' + "x" * MAX_JSON_BYTES + '"'), f"{O}.json_schema", "at most 131,072"),
    (structured(structural_tag="[]"), f"{O}.structural_tag", "JSON object"),
    (structured(regex=""), f"{O}.regex", "give the constraint"),
    (structured(regex="a" * 20_000), f"{O}.regex", "at most 16,384"),
    (structured(grammar="a" * 200_000), f"{O}.grammar", "at most 131,072"),
    (structured(choice=pb.Choice()), f"{O}.choice.values", "at least one"),
    (structured(choice=pb.Choice(values=["a", ""])), f"{O}.choice.values[1]", "at least one"),
    (structured(choice=pb.Choice(values=["a"] * 1025)), f"{O}.choice.values", "at most 1,024"),
    (structured(choice=pb.Choice(values=["a" * 5000])), f"{O}.choice.values[0]", "at most 4,096"),
    (structured(json_schema="{}", whitespace_pattern="a" * 20_000), f"{O}.whitespace_pattern", "at most"),
    # Ids and the rest.
    (generation(cache_salt="x" * 257), "generation.cache_salt", "at most 256"),
    (generation(session=pb.Session()), "generation.session.id", "an id"),
    (generation(session=pb.Session(id="x" * 257)), "generation.session.id", "at most 256"),
    (generation(session=pb.Session(id="a\nb")), "generation.session.id", "leave them out"),
    (generation(session=pb.Session(id="a", mode=9)), "generation.session.mode", "SESSION_MODE_SOFT"),  # type: ignore[arg-type]
    (generation(lora_adapter="a b"), "generation.lora_adapter", "no white space"),
    (generation(on_server_failure=9), "generation.on_server_failure", "ON_SERVER_FAILURE_FAIL"),
    (generation(tenant=pb.Tenant()), "generation.tenant.id", "an id"),
    *[(generation(request_id=text), "generation.request_id", "A-Z a-z") for text in ("a b", "a\n", "x" * 129, "é")],
]

NOT_YET = [
    (generation(tenant=pb.Tenant(id="t")), "generation.tenant"),
    (chatting(IMAGE), "generation.chat.messages.content.image"),
]

FINE = [
    generation(),
    generation(token_ids=pb.TokenIds(ids=[0, 2**31 - 1])),
    chatting(Message(role="assistant", tool_calls=[pb.ToolCall(id="1", name="f", arguments_json='{"a": "[[["}')])),
    chatting(chat_template_kwargs_json='{"a": ' + "[" * 63 + "]" * 63 + "}"),
    tool('{"a": "' + "[{" * 100 + '"}'),
    *[
        generation(model=name)
        for name in ("HuggingFaceTB/SmolLM2-135M-Instruct@2", "模型", "a..b", "m:latest", "m" * 256)
    ],
    sampled(),
    sampled(temperature=0.0, top_p=1.0, min_p=1.0, top_k=0, repetition_penalty=10.0, presence_penalty=-2.0),
    sampled(temperature=2.0, max_tokens=2**31 - 1, min_tokens=1, n=64, logprobs=0, seed=-(2**63)),
    sampled(stop=["x" * 1024] * 64, max_tokens=1, min_tokens=1),
    sampled(min_tokens=5),
    sampled(repetition_detection=CIRCLES(max_pattern_size=4, min_pattern_size=1, min_count=2)),
    structured(json_schema="true"),
    structured(json_object=pb.JsonObject()),
    structured(choice=pb.Choice(values=["yes", "no"])),
    generation(
        on_server_failure=pb.ON_SERVER_FAILURE_FAIL, session=pb.Session(id="my session", mode=pb.SESSION_MODE_SOFT)
    ),
    generation(session=pb.Session(id="s", mode=pb.SESSION_MODE_HARD)),
    generation(request_id="a-Z_0.9:/" + "x" * 119, cache_salt="s" * 256, priority=-5),
]


def refused(request: pb.Generation) -> Refusal:
    with pytest.raises(Refusal) as caught:
        check_generation(request)
    return caught.value


@pytest.mark.parametrize(
    ("request_", "field", "says"), INVALID, ids=[f"{at}-{field}" for at, (_, field, _) in enumerate(INVALID)]
)
def test_what_no_server_could_serve_is_refused_by_its_field(request_: pb.Generation, field: str, says: str) -> None:
    refusal = refused(request_)
    assert (refusal.code, refusal.field) == (Code.INVALID_ARGUMENT, field)
    assert refusal.message.startswith(field)
    assert says in refusal.message
    # It is shown to people, and fits into a status.
    assert refusal.message.isprintable()
    assert len(refusal.message) < 500


@pytest.mark.parametrize(("request_", "field"), NOT_YET, ids=[field for _, field in NOT_YET])
def test_what_is_not_built_is_unimplemented_by_its_field(request_: pb.Generation, field: str) -> None:
    refusal = refused(request_)
    assert (refusal.code, refusal.field, refusal.reason) == (Code.UNIMPLEMENTED, field, "NOT_YET")


@pytest.mark.parametrize("request_", FINE, ids=[str(at) for at in range(len(FINE))])
def test_what_a_server_could_serve_passes(request_: pb.Generation) -> None:
    check_generation(request_)


def test_every_numeric_field_of_sampling_has_a_range_or_needs_none() -> None:
    from stoker_common.ranges import SAMPLING

    numeric = {
        field.name
        for field in pb.Sampling.DESCRIPTOR.fields
        if field.type in (field.TYPE_INT64, field.TYPE_DOUBLE) and not field.is_repeated
    }
    assert numeric - {"seed"} == set(SAMPLING)


@pytest.mark.parametrize(
    ("ids", "max_tokens", "fits"),
    [([1], None, 9), ([1], 3, 3), ([1], 100, 9), ([0] * 9, None, 1), ([0, 99], 1, 1)],
)
def test_max_tokens_is_what_was_asked_or_what_the_context_leaves(
    ids: list[int], max_tokens: int | None, fits: int
) -> None:
    assert check_fits(ids, max_tokens, vocabulary=100, max_model_tokens=10) == fits


@pytest.mark.parametrize(
    ("ids", "reason", "field", "says"),
    [
        ([], "PROMPT_EMPTY", "generation.prompt", "at least one"),
        ([1] * 10, "PROMPT_TOO_LONG", "generation.prompt", "at most 9"),
        ([1, 100], "TOKEN_ID_OUT_OF_RANGE", "generation.token_ids.ids[1]", "0 to 99"),
        ([-1, 1], "TOKEN_ID_OUT_OF_RANGE", "generation.token_ids.ids[0]", "0 to 99"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(ids: list[int], reason: str, field: str, says: str) -> None:
    with pytest.raises(Refusal, match=says) as caught:
        check_fits(ids, None, vocabulary=100, max_model_tokens=10)
    assert (caught.value.code, caught.value.reason, caught.value.field) == (Code.INVALID_ARGUMENT, reason, field)
