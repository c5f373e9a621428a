"""Header blocks that we write, read by another implementation."""

import base64

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from stoker_common.http2 import fields

pytestmark = pytest.mark.unit


def read(block: bytes) -> list[tuple[str, str]]:
    decoder = Decoder(max_header_list_size=1 << 20)
    found = [(str(name), str(value)) for name, value in decoder.decode(block)]
    assert not decoder.header_table.dynamic_entries, "literals are not to be kept"
    return found


def test_an_answers_first_block_and_its_last() -> None:
    assert read(fields.HEADERS) == [(":status", "200"), ("content-type", "application/grpc")]
    assert read(fields.status(0, "")) == [("grpc-status", "0")]
    assert read(fields.status(5, "50 % ü\n")) == [("grpc-status", "5"), ("grpc-message", "50 %25 %C3%BC%0A")]
    assert read(fields.http_status(415)) == [(":status", "415")]


@given(st.text())
def test_any_message_can_be_sent_and_read(text: str) -> None:
    sent = fields.percent_encoded(text)
    assert all(0x20 <= byte < 0x7F for byte in sent)
    parts = sent.split(b"%")
    data = parts[0] + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in parts[1:])
    assert data == text.encode("utf-8", "replace")


@given(st.lists(st.tuples(st.from_regex(r"[0-9a-z_.\-]+-bin", fullmatch=True), st.binary(max_size=400)), max_size=5))
def test_binary_values_go_as_base64(metadata: list[tuple[str, bytes]]) -> None:
    found = read(fields.encoded(metadata))
    assert [(key, base64.b64decode(value + "=" * (-len(value) % 4))) for key, value in found] == metadata


@given(st.lists(st.tuples(st.just("x-key"), st.text(st.characters(min_codepoint=32, max_codepoint=126))), max_size=3))
def test_text_goes_as_it_is(metadata: list[tuple[str, str]]) -> None:
    assert read(fields.encoded(metadata)) == metadata


@pytest.mark.parametrize(
    "entry",
    [("Key", "x"), ("", "x"), ("grpc-status", "0"), (":path", "x"), ("key", "a\nb"), ("key", "ü"), ("k y", "x")],
)
def test_what_no_client_takes_is_not_sent(entry: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="key"):
        fields.encoded([entry])


def test_the_details_of_a_status_may_be_sent() -> None:
    assert read(fields.encoded([("grpc-status-details-bin", b"\1\2")])) == [("grpc-status-details-bin", "AQI")]
