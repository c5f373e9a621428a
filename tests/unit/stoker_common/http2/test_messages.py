"""Messages out of DATA, however it is cut, and never more of one than may be."""

import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_common.http2.frames import message_prefix
from stoker_common.http2.messages import MessageReader, Packed, Unreadable
from stoker_common.refusal import Code

pytestmark = pytest.mark.unit


@given(st.lists(st.binary(max_size=60), max_size=6), st.lists(st.integers(1, 50), min_size=1))
def test_messages_come_out_as_they_went_in(messages: list[bytes], cuts: list[int]) -> None:
    data = b"".join(message_prefix(len(each)) + each for each in messages)
    reader, got, at = MessageReader(60, "identity"), list[bytes](), 0
    while at < len(data):
        for cut in cuts:
            got.extend(reader.feed(data[at : at + cut]))
            at += cut
    assert got == messages
    assert not reader.held_bytes


def test_a_length_beyond_the_limit_is_refused_before_it_comes() -> None:
    with pytest.raises(Unreadable) as caught:
        list(MessageReader(10, "identity").feed(message_prefix(11)))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


def zipped(data: bytes, window: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    packed = packer.compress(data) + packer.flush()
    return b"\1" + message_prefix(len(packed))[1:] + packed


@pytest.mark.parametrize(("encoding", "window"), [("gzip", 31), ("deflate", 15)])
def test_compressed_messages_are_read(encoding: str, window: int) -> None:
    reader = MessageReader(1000, encoding)
    data = zipped(b"a" * 1000, window) + message_prefix(1) + b"b" + zipped(b"", window)
    assert list(reader.feed(data)) == [b"a" * 1000, b"b", b""]


def unpacked(reader: MessageReader, data: bytes) -> list[bytes]:
    """The messages, those unpacked later as well."""
    return [each.unpacked() if isinstance(each, Packed) else each for each in reader.feed(data)]


@pytest.mark.parametrize(("size", "later"), [(100_000, False), (200_000, True), (1 << 20, True)])
def test_what_takes_long_to_unpack_is_left_for_later(size: int, later: bool) -> None:
    data = zipped(bytes(size), 31)
    (message,) = MessageReader(1 << 20, "gzip").feed(data)
    assert isinstance(message, Packed) == later
    assert unpacked(MessageReader(1 << 20, "gzip"), data) == [bytes(size)]


def test_a_large_message_that_is_cut_off_is_an_error() -> None:
    whole = zipped(random.Random(1).randbytes(300_000), 31)[5:-100]
    with pytest.raises(Unreadable) as caught:
        unpacked(MessageReader(1 << 20, "gzip"), b"\1" + message_prefix(len(whole))[1:] + whole)
    assert caught.value.code is Code.INTERNAL


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zipped(bytes(64 << 20), 31)
    tracemalloc.start()
    try:
        with pytest.raises(Unreadable) as caught:
            unpacked(MessageReader(1 << 20, "gzip"), bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("identity", zipped(b"a", 31)),
        ("gzip", zipped(b"a", 15)),
        ("gzip", b"\1" + message_prefix(10)[1:] + zipped(b"a" * 100, 31)[5:15]),
    ],
)
def test_what_is_not_compressed_as_it_says_is_an_error(encoding: str, data: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        list(MessageReader(1000, encoding).feed(data))
    assert caught.value.code is Code.INTERNAL
