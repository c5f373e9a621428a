"""Whatever a client sends: no exception leaves the connection, its memory is bounded, and others are served as ever."""

from collections.abc import Sequence

import pytest
from hpack import Encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker_common.http2.frames import PREFACE, head, message_prefix
from stoker_common.http2.frames import settings as settings_frame
from stoker_common.http2.limits import Limits
from tests.unit.stoker_common.http2.kit import Client, Handlers, headers, run, served, settle

pytestmark = pytest.mark.unit

LIMITS = Limits(
    streams=5,
    request_bytes=2000,
    unread_bytes=5000,
    control_burst=500,
    control_per_s=0.0,
    resets_burst=10,
    resets_per_s=0,
)
# A busy machine is slow at making frames up.
SLOW = [HealthCheck.too_slow]
METHODS = ["Twice", "Hold", "Send", "Collect", "Stay", "Nothing"]


def block(method: str) -> bytes:
    return Encoder().encode(headers(method))


STREAMS = st.sampled_from([0, 1, 1, 3, 3, 5, 7, 9, 2, 2**31 - 1])
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(METHODS).map(block),
    st.binary(max_size=200).map(lambda data: message_prefix(len(data)) + data),
    st.integers(0, 2**32 - 1).map(lambda number: number.to_bytes(4)),
    st.tuples(st.integers(0, 7), st.integers(0, 2**32 - 1)).map(lambda it: it[0].to_bytes(2) + it[1].to_bytes(4)),
)
# Any frame, with a length that is right, and sometimes one that is not.
FRAMES = st.builds(
    lambda kind, flags, stream, payload, more: head(max(0, len(payload) + more), kind, flags, stream) + payload,
    st.one_of(st.integers(0, 10), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D]), st.integers(0, 255)),
    STREAMS,
    PAYLOADS,
    st.sampled_from([0] * 20 + [-1, 1, 100]),
)
# Good calls, for mistakes to fall in the middle of something.
CALLS = st.builds(
    lambda number, method, data, ends: (
        head(len(block(method)), 1, 4, 2 * number + 1)
        + block(method)
        + head(len(data) + 5, 0, ends, 2 * number + 1)
        + message_prefix(len(data))
        + data
    ),
    st.integers(0, 6),
    st.sampled_from(METHODS),
    st.one_of(st.just(b"3 50"), st.binary(max_size=50)),
    st.integers(0, 1),
)
SESSIONS = st.lists(st.one_of(FRAMES, CALLS), max_size=25)


async def survives(pieces: Sequence[bytes]) -> None:
    handlers = Handlers()
    server = served(handlers, LIMITS)
    bad, good = Client(server, greet=False), Client(server)
    for piece in pieces:
        bad.frames(piece)
        assert len(bad.connection.streams) <= LIMITS.streams
        assert sum(each.inbox.unread_bytes for each in bad.connection.streams.values()) <= LIMITS.unread_bytes
    await settle()
    stream = good.open("Twice", b"a")
    await good.hear()
    assert good.message(stream) == b"aa"
    bad.transport.close()
    good.transport.close()
    await settle()
    assert not bad.connection.streams and not handlers.running
    await server.stop(None)


@settings(deadline=None, suppress_health_check=SLOW, max_examples=200)
@given(SESSIONS)
def test_any_frames(frames: list[bytes]) -> None:
    run(lambda: survives([PREFACE + settings_frame({}), *frames]))


@settings(deadline=None, suppress_health_check=SLOW, max_examples=80)
@given(st.lists(CALLS, min_size=1, max_size=5), st.data())
def test_a_good_session_with_bytes_changed_cut_out_or_cut_off(calls: list[bytes], data: st.DataObject) -> None:
    session = bytearray(PREFACE + settings_frame({}) + b"".join(calls))
    for _ in range(data.draw(st.integers(1, 4), "changes")):
        at = data.draw(st.integers(0, len(session) - 1), "at")
        match data.draw(st.sampled_from(["change", "cut out", "cut off", "insert"]), "how"):
            case "change":
                session[at] = data.draw(st.integers(0, 255), "to")
            case "cut out":
                del session[at : at + data.draw(st.integers(1, 20), "so many")]
            case "cut off":
                del session[at + 1 :]
            case _:
                session[at:at] = data.draw(st.binary(min_size=1, max_size=20), "what")
        if not session:
            break
    size = data.draw(st.integers(1, 200), "pieces")
    run(lambda: survives([bytes(session[at : at + size]) for at in range(0, len(session), size)]))


@settings(deadline=None, suppress_health_check=SLOW, max_examples=60)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    run(lambda: survives([data]))


@settings(deadline=None, suppress_health_check=SLOW, max_examples=80)
@given(st.binary(max_size=120))
def test_any_header_block(data: bytes) -> None:
    run(lambda: survives([PREFACE + settings_frame({}), head(len(data), 1, 5, 1) + data]))
