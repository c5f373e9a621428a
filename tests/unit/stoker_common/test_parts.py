"""What a part holds, told from its bytes, against what parsing says."""

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from stoker.v1 import inference_pb2
from stoker_common.parts import only_deltas

Part = inference_pb2.GenerateStreamResponse

deltas = st.builds(
    inference_pb2.Delta,
    index=st.integers(0, 300),
    text=st.text(max_size=200),
    token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=40),
)
parts = st.builds(
    Part,
    deltas=st.lists(deltas, max_size=4),
    started=st.none() | st.builds(inference_pb2.Started, model=st.text(max_size=20)),
    finished=st.none() | st.builds(inference_pb2.Finished),
    progress=st.none() | st.builds(inference_pb2.Progress, activity=st.text(max_size=5)),
)


def says(data: bytes) -> bool:
    """By parsing."""
    try:
        part = Part.FromString(data)
    except DecodeError:
        return False
    only = Part(deltas=part.deltas)
    return bool(part.deltas) and only == part


@given(st.lists(parts, min_size=1, max_size=3))
def test_it_says_what_parsing_says_of_parts_and_of_joined_parts(some: list[Part]) -> None:
    data = b"".join(part.SerializeToString() for part in some)
    assert only_deltas(data) == says(data)


@given(st.binary(max_size=200))
def test_of_any_bytes_it_never_raises_nor_takes_what_holds_more_for_output_alone(data: bytes) -> None:
    if only_deltas(data):
        try:
            part = Part.FromString(data)
        except DecodeError:
            return  # what is inside of a delta is not looked at
        assert not (part.HasField("started") or part.HasField("finished") or part.HasField("progress"))


def test_a_usual_token_is_told_at_once() -> None:
    assert only_deltas(Part(deltas=[inference_pb2.Delta(text=" the", token_ids=[5])]).SerializeToString())
    assert not only_deltas(b"")
