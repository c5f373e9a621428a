"""Header blocks as fields, and blocks that are alike read once: never with what they meant before the table changed."""

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from stoker_common.http2.blocks import HeaderBlocks
from stoker_common.http2.frames import END_HEADERS
from stoker_common.http2.limits import Limits

pytestmark = pytest.mark.unit

NAMES = st.sampled_from(["x-a", "x-b", "grpc-timeout", ":path", ":method", "content-type"])
VALUES = st.sampled_from(["1", "2", "POST", "a much longer value that is the same each time", "x" * 300])
# Few of them, so that blocks come again, and table entries move meanwhile.
LISTS = st.lists(st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=5), min_size=2, max_size=3)


@given(LISTS, st.lists(st.integers(0, 2), max_size=40), st.sampled_from([4096, 400, 0]))
def test_blocks_are_read_as_they_were_written(lists: list[list[tuple[str, str]]], order: list[int], table: int) -> None:
    encoder, blocks = Encoder(), HeaderBlocks(Limits())
    encoder.header_table_size = table
    for at in order:
        fields = lists[at % len(lists)]
        block = blocks.begin(END_HEADERS, 1, encoder.encode(fields))
        assert block is not None
        assert block.fields == [(name.encode(), value.encode()) for name, value in fields]


def test_blocks_that_are_alike_are_one() -> None:
    encoder, blocks = Encoder(), HeaderBlocks(Limits())
    found = [blocks.begin(END_HEADERS, 1, encoder.encode([("x-a", "1"), ("x-b", "2")])) for _ in range(4)]
    assert found[0] is not found[1]
    assert found[1] is found[2] is found[3]


def test_only_so_many_are_kept() -> None:
    encoder, blocks = Encoder(), HeaderBlocks(Limits())
    lists = [[("x-a", str(number % 5)), ("x-b", str(number % 7))] for number in range(35)]
    for _ in range(3):
        for fields in lists:
            blocks.begin(END_HEADERS, 1, encoder.encode(fields))
    assert len(blocks._known) == 16


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ([("x-a", "1")] * 256, True),
        ([("x-a", "1")] * 257, False),
        ([("x-a", "1" * 500)] * 4, True),
        ([("x-a", "1" * 500)] * 5, False),
    ],
)
def test_only_short_ones_are_kept(fields: list[tuple[str, str]], kept: bool) -> None:
    encoder, blocks = Encoder(), HeaderBlocks(Limits())
    found = [blocks.begin(END_HEADERS, 1, encoder.encode(fields)) for _ in range(3)]
    assert (found[1] is found[2]) is kept
