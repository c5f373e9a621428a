"""What addresses mean to a channel of ours, and which it refuses."""

import pytest

from stoker_common.http2.asking import timeout
from stoker_common.http2.target import Target, target

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("127.0.0.1:7070", Target("127.0.0.1", 7070)),
        ("router:7070", Target("router", 7070)),
        ("[::1]:7070", Target("::1", 7070)),
        ("ipv4:127.0.0.1:7070", Target("127.0.0.1", 7070)),
        ("ipv6:[::1]:7070", Target("::1", 7070)),
        ("dns:router:7070", Target("router", 7070)),
        ("dns:///router:7070", Target("router", 7070)),
        ("router", Target("router", 443)),
        ("::1", Target("::1", 443)),
    ],
)
def test_addresses(text: str, means: Target) -> None:
    assert target(text) == means


@pytest.mark.parametrize(
    "text",
    ["unix:/run/r.sock", "unix:relative", "xds:///router", "https://router:7070", ":7070", "router:x", "a:99999"],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|cannot be reached"):
        target(text)


def test_what_requests_call_it() -> None:
    assert Target("::1", 5).authority == "[::1]:5"
    assert str(Target("router", 5)) == "router:5"


@pytest.mark.parametrize(
    ("left_s", "said"),
    [
        (1e-12, b"1n"),
        (0.05, b"50000000n"),
        (0.5, b"500000u"),
        (99.999999, b"99999999u"),
        (100.0, b"100000m"),
        (100_000.0, b"100000S"),
        (1e9, b"16666667M"),
        (1e11, b"27777778H"),
        (1e13, b""),
    ],
)
def test_timeouts_are_said_in_eight_digits_and_never_too_soon(left_s: float, said: bytes) -> None:
    field = timeout(left_s)
    assert field.endswith(said) and (not said or b"grpc-timeout" in field)
