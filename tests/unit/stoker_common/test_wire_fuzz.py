"""Whatever bytes arrive: a message or a Refusal, and what is refused is refused within the rules."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.v1 import generation_pb2 as pb
from stoker.v1 import inference_pb2
from stoker_common import validate, wire
from stoker_common.refusal import Code, Refusal
from stoker_common.status import to_rpc_status

pytestmark = pytest.mark.unit

# Bytes that look like fields get further than bytes at random.
FIELDS = st.builds(
    lambda number, kind, rest: bytes([number << 3 | kind]) + rest,
    st.integers(0, 15),
    st.integers(0, 5),
    st.binary(max_size=12),
)
FIELD_LIKE = st.lists(FIELDS, max_size=8).map(b"".join)
WRAPPED = FIELD_LIKE.filter(lambda inner: len(inner) < 128).map(lambda inner: b"\x0a" + bytes([len(inner)]) + inner)

NUMBERS = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))
FLOATS = st.one_of(st.none(), st.floats())
SAMPLINGS = st.builds(
    pb.Sampling,
    temperature=FLOATS,
    top_p=FLOATS,
    repetition_penalty=FLOATS,
    max_tokens=NUMBERS,
    n=NUMBERS,
    logprobs=NUMBERS,
    seed=NUMBERS,
    stop=st.lists(st.text(max_size=5), max_size=3),
    logit_bias=st.dictionaries(st.integers(-(2**31), 2**31 - 1), st.floats(), max_size=3),
)
GENERATIONS = st.builds(
    pb.Generation,
    model=st.text(max_size=20),
    text=st.text(max_size=20),
    sampling=SAMPLINGS,
    request_id=st.text(max_size=20),
    session=st.builds(pb.Session, id=st.text(max_size=20)),
    structured_output=st.builds(pb.StructuredOutput, json_schema=st.text(max_size=20)),
)


def check(request: inference_pb2.GenerateRequest) -> None:
    try:
        validate.check_generation(request.generation)
    except Refusal as refusal:
        assert refusal.code in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)
        assert refusal.field
        assert to_rpc_status(refusal).ByteSize() < 4096


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=200), FIELD_LIKE, WRAPPED))
def test_bytes_are_a_message_or_a_refusal(data: bytes) -> None:
    try:
        request = wire.parse(inference_pb2.GenerateRequest, data)
    except Refusal as refusal:
        assert refusal.code is Code.INVALID_ARGUMENT
    else:
        check(request)


@settings(deadline=None)
@given(GENERATIONS)
def test_a_generation_passes_or_is_refused_by_a_field(generation: pb.Generation) -> None:
    check(
        wire.parse(
            inference_pb2.GenerateRequest, inference_pb2.GenerateRequest(generation=generation).SerializeToString()
        )
    )
