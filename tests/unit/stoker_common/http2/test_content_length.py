"""content-length, where a client says it, is the length of its DATA (RFC 9113, section 8.1.1)."""

import pytest

from stoker_common.http2.faults import StreamFault
from stoker_common.http2.frames import END_HEADERS, END_STREAM, HEADERS, ErrorCode, head, message_prefix
from stoker_common.http2.request import Request, read
from tests.unit.stoker_common.http2.kit import Client, Handlers, run, served
from tests.unit.stoker_common.http2.test_request import FIELDS

pytestmark = pytest.mark.unit

MESSAGE = message_prefix(2) + b"ab"


async def called(length: str, *parts: bytes | None, end: bool = False) -> tuple[Client, int]:
    """A call whose DATA are these, the last one its end; None is trailers. Its stream."""
    client = Client(served(Handlers()))
    stream = client.open("Twice", end=end, metadata=(("content-length", length),))
    for at, part in enumerate(parts):
        if part is None:
            client.frames(head(0, HEADERS, END_HEADERS | END_STREAM, stream))
        else:
            client.data(stream, part, end=at == len(parts) - 1)
    await client.hear()
    return client, stream


@pytest.mark.parametrize(
    ("length", "parts"),
    [
        ("8", [MESSAGE]),
        ("6", [MESSAGE]),
        ("6", [MESSAGE, b"more"]),
        ("8", [MESSAGE, b""]),
        ("8", [MESSAGE, None]),
        ("7", []),
    ],
)
def test_another_length_is_malformed(length: str, parts: list[bytes | None]) -> None:
    async def test() -> None:
        client, stream = await called(length, *parts, end=not parts)
        assert client.resets == {stream: ErrorCode.PROTOCOL_ERROR}
        assert not client.connection.streams and not client.transport.closed

    run(test)


@pytest.mark.parametrize(("length", "parts"), [("7", [MESSAGE]), ("07", [MESSAGE[:3], MESSAGE[3:], None])])
def test_the_length_itself_is_served(length: str, parts: list[bytes | None]) -> None:
    async def test() -> None:
        client, stream = await called(length, *parts)
        assert client.message(stream) == b"abab" and not client.resets

    run(test)


@pytest.mark.parametrize("value", [b"", b"-1", b"1 ", b"x", b"9" * 30])
def test_what_is_no_length_is_malformed(value: bytes) -> None:
    with pytest.raises(StreamFault) as caught:
        read(1, [*FIELDS, (b"content-length", value)])
    assert caught.value.code is ErrorCode.PROTOCOL_ERROR


def test_two_lengths_have_to_be_one() -> None:
    asked = read(1, [*FIELDS, (b"content-length", b"7"), (b"content-length", b"7")])
    assert isinstance(asked, Request) and asked.content_bytes == 7 and not asked.metadata
    with pytest.raises(StreamFault):
        read(1, [*FIELDS, (b"content-length", b"7"), (b"content-length", b"8")])
