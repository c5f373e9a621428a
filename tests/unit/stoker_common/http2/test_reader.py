"""A client's bytes as frames, however they are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_common.http2.faults import ConnectionFault
from stoker_common.http2.frames import PREFACE, ErrorCode, head
from stoker_common.http2.reader import Frame, FrameReader

pytestmark = pytest.mark.unit

FRAMES = st.lists(
    st.builds(Frame, st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=300)),
    max_size=8,
)


def written(frames: list[Frame]) -> bytes:
    return PREFACE + b"".join(head(len(each.payload), *each[:3]) + each.payload for each in frames)


@given(FRAMES, st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_frames_come_out_as_they_went_in(frames: list[Frame], cuts: list[int]) -> None:
    data, reader, got, at = written(frames), FrameReader(16_384), list[Frame](), 0
    while at < len(data):
        for cut in cuts:
            got.extend(reader.feed(data[at : at + cut]))
            at += cut
    assert got == frames


def test_the_reserved_bit_of_a_stream_is_passed_over() -> None:
    (frame,) = FrameReader(16_384, greeted=True).feed(b"\0\0\0\6\0\xff\xff\xff\xff")
    assert frame.stream_id == 2**31 - 1


def test_a_frame_beyond_the_limit_is_refused_by_its_head() -> None:
    reader = FrameReader(100, greeted=True)
    assert len(list(reader.feed(head(100, 0, 0, 1) + bytes(100)))) == 1
    with pytest.raises(ConnectionFault) as caught:
        list(reader.feed(head(101, 0, 0, 1)))
    assert caught.value.code is ErrorCode.FRAME_SIZE_ERROR


@pytest.mark.parametrize("at", range(len(PREFACE)))
def test_a_wrong_preface_is_known_at_its_first_wrong_byte(at: int) -> None:
    reader = FrameReader(16_384)
    list(reader.feed(PREFACE[:at]))
    with pytest.raises(ConnectionFault):
        # What was right is not kept for longer than it may become a preface.
        list(reader.feed(b"\0" * (len(PREFACE) - at)))
