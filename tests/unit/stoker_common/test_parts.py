"""What a part holds, told from its bytes, against what parsing says."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from stoker.v1 import inference_pb2
from stoker_common.parts import joined, only_deltas, tokens_in

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
    progress=st.none() | st.builds(inference_pb2.Progress, activity=st.text(max_size=5), fraction=st.floats(0, 1)),
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


@given(st.lists(parts, min_size=1, max_size=6), st.integers(1, 3))
def test_joined_parts_are_what_they_are_one_after_the_other_but_for_the_progress_which_is_the_latest(
    some: list[Part], pieces: int
) -> None:
    """Also where they were joined before, on the way."""
    data = [part.SerializeToString() for part in some]
    size = -(-len(data) // pieces)
    whole = joined([joined(data[at : at + size]) for at in range(0, len(data), size)])
    expected = Part()
    for part in some:
        if part.HasField("progress"):
            expected.ClearField("progress")
        expected.MergeFrom(part)
    assert Part.FromString(whole) == expected


def test_the_time_that_remains_is_not_added_up() -> None:
    def left(**time: int) -> bytes:
        return Part(progress=inference_pb2.Progress(remaining=Duration(**time))).SerializeToString()

    part = Part.FromString(joined([left(seconds=5, nanos=200_000_000), left(nanos=400_000_000)]))
    assert part.progress.remaining == Duration(nanos=400_000_000)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4))
def test_whatever_is_joined_nothing_of_it_is_lost_that_is_no_progress(some: list[bytes]) -> None:
    whole = joined(some)
    assert len(whole) <= len(b"".join(some))
    if b"\x1a" not in whole:
        assert whole == b"".join(some)


def test_tokens_are_counted_over_all_deltas() -> None:
    of = [inference_pb2.Delta(token_ids=[1, 2]), inference_pb2.Delta(text="x"), inference_pb2.Delta(token_ids=[3])]
    assert tokens_in(Part(deltas=of).SerializeToString()) == 3


def test_a_usual_token_is_told_at_once() -> None:
    assert only_deltas(Part(deltas=[inference_pb2.Delta(text=" the", token_ids=[5])]).SerializeToString())
    assert not only_deltas(b"")
