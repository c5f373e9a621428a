"""A prompt in several forms at once is found in the bytes, where the parsed message no longer shows it."""

import pytest
from google.protobuf.message import Message

from stoker.v1 import generation_pb2 as pb
from stoker.v1 import inference_pb2, router_pb2
from stoker_common import scan, wire
from stoker_common.refusal import Code, Refusal

pytestmark = pytest.mark.unit

TEXT = pb.Generation(text="a").SerializeToString()
EMPTY_TEXT = b"\x12\x00"
IDS = pb.Generation(token_ids=pb.TokenIds(ids=[1, 2])).SerializeToString()
CHAT = pb.Generation(chat=pb.Chat(messages=[pb.ChatMessage(role="user")])).SerializeToString()
REST = pb.Generation(model="m", sampling=pb.Sampling(n=2), priority=7, request_id="r").SerializeToString()
SCHEMA = pb.StructuredOutput(json_schema="{}").SerializeToString()
REGEX = pb.StructuredOutput(regex="a").SerializeToString()


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, payload: bytes) -> bytes:
    """A field with a length, as it is on the wire."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def request(*parts: bytes) -> bytes:
    return field(1, b"".join(parts))


# Fields that protobuf skips: a varint where text is a string, a fixed 64 and 32, a group with a text inside.
SKIPPED = b"\x10\x05" + b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4) + b"\xfb\x07" + TEXT + b"\xfc\x07"

TWICE = [
    ("text and ids", request(TEXT, IDS), "generation.prompt", "2 forms at once (text, token_ids)"),
    ("ids and text", request(IDS, REST, TEXT), "generation.prompt", "(text, token_ids)"),
    ("text and chat", request(REST, CHAT, TEXT), "generation.prompt", "(chat, text)"),
    ("all three", request(CHAT, TEXT, IDS), "generation.prompt", "3 forms"),
    ("two texts", request(TEXT, TEXT), "generation.prompt", "(text, text)"),
    ("two ids", request(IDS, IDS), "generation.prompt", "(token_ids, token_ids)"),
    ("an empty text and ids", request(EMPTY_TEXT, IDS), "generation.prompt", "(text, token_ids)"),
    ("after fields that are skipped", request(SKIPPED, TEXT, SKIPPED, CHAT), "generation.prompt", "(chat, text)"),
    (
        "a text longer than a length byte tells",
        request(field(2, b"x" * 300), IDS),
        "generation.prompt",
        "(text, token_ids)",
    ),
    ("two generations", request(TEXT) + request(REST), "generation", "send it once"),
    (
        "two constraints",
        request(TEXT, field(6, SCHEMA + REGEX)),
        "generation.structured_output.constraint",
        "(json_schema, regex)",
    ),
    ("two structured outputs", request(TEXT, field(6, SCHEMA), field(6, REGEX)), "generation", "send it once"),
    ("a flood of fields", request(b"\x50\x01" * (scan.MAX_FIELDS + 1)), "generation", "1024 fields"),
]

ONCE = [
    ("text", request(REST, TEXT)),
    ("ids", request(IDS, REST)),
    ("chat", request(CHAT)),
    ("nothing", b""),
    ("no prompt", request(REST)),
    ("fields that are skipped", SKIPPED + request(SKIPPED, TEXT, SKIPPED) + SKIPPED),
    ("a constraint", request(TEXT, field(6, SCHEMA))),
    ("what looks like a second prompt inside the first", request(field(2, CHAT))),
]

REQUESTS = [
    inference_pb2.GenerateRequest,
    inference_pb2.GenerateStreamRequest,
    router_pb2.RouteRequest,
    router_pb2.ExplainRequest,
]


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize(("data", "path", "says"), [case[1:] for case in TWICE], ids=[case[0] for case in TWICE])
def test_what_may_be_given_once_is_refused_when_given_twice(
    kind: type[Message], data: bytes, path: str, says: str
) -> None:
    kind.FromString(data)  # protobuf has nothing against it
    with pytest.raises(Refusal) as caught:
        wire.parse(kind, data)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, path)
    assert says in caught.value.message


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("data", [case[1] for case in ONCE], ids=[case[0] for case in ONCE])
def test_what_is_given_once_passes(kind: type[Message], data: bytes) -> None:
    assert wire.parse(kind, data) == kind.FromString(data)


def test_a_message_without_a_generation_passes() -> None:
    data = TEXT + IDS
    assert wire.parse(pb.Generation, data) == pb.Generation.FromString(data)
