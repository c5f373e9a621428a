"""What a header list asks for."""

import pytest

from stoker_common.http2.request import Request, read

pytestmark = pytest.mark.unit

FIELDS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


def asked(*more: tuple[bytes, bytes]) -> Request:
    request = read(1, [*FIELDS, *more])
    assert isinstance(request, Request)
    return request


def test_a_call_and_its_metadata() -> None:
    request = asked((b"x-a", b"1"), (b"x-a", b"2"), (b"x-b-bin", b"AP8"), (b"x-c-bin", b"AA==,AQ"))
    assert request.path == "/a.B/C"
    assert request.metadata == (
        ("x-a", "1"),
        ("x-a", "2"),
        ("x-b-bin", b"\0\xff"),
        ("x-c-bin", b"\0"),
        ("x-c-bin", b"\1"),
    )
    assert request.timeout_s is None and request.encoding == "identity"
    assert request.size_bytes == sum(len(name) + len(value) + 32 for name, value in FIELDS) + 4 * 32 + 32


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"2H", 7200.0),
        (b"3M", 180.0),
        (b"4S", 4.0),
        (b"5m", 0.005),
        (b"6u", 6e-6),
        (b"7n", 7e-9),
        (b"99999999H", 3.6e11),
    ],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    assert asked((b"grpc-timeout", text)).timeout_s == pytest.approx(seconds, rel=1e-6)
