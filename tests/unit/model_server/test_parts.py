"""What is written by hand is what protobuf writes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_server.engine import EngineOutput
from model_server.parts import add_delta, plain_part
from stoker.v1 import inference_pb2
from stoker_common.varint import varint

pytestmark = pytest.mark.unit

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=4)


@given(st.integers(0, 300), st.text(max_size=200), IDS)
@example(0, "x", [0x7F])
@example(0, "x", [0x80])
@example(0, "x", [0x3FFF])
@example(0, "x", [0x4000])
@example(0, "x", [0x1FFFFF])
@example(0, "x", [0x200000])
@example(0, "", [])
@example(0, "x" * 99, [0x4000])
@example(0, "x" * 100, [0x4000])
@example(0, "x" * 128, [1])
def test_a_plain_part_is_what_protobuf_makes_of_it(index: int, text: str, ids: list[int]) -> None:
    response = inference_pb2.GenerateStreamResponse()
    add_delta(response, index, EngineOutput(text, tuple(ids)))
    assert plain_part(index, text, ids) == response.SerializeToString()


@given(st.integers(0, 2**64 - 1))
def test_a_varint_reads_as_what_it_was(value: int) -> None:
    read = 0
    for place, byte in enumerate(data := varint(value)):
        read |= (byte & 0x7F) << 7 * place
        assert (byte >= 0x80) == (place < len(data) - 1)
    assert read == value
