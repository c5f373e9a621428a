"""Whatever a server sends: no exception leaves the connection, every call ends, and the next is asked as ever."""

import asyncio
from collections.abc import Sequence

import pytest
from hpack import Encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker_common.http2.frames import head, message_prefix
from stoker_common.http2.frames import settings as settings_frame
from stoker_common.http2.limits import Limits
from tests.unit.stoker_common.http2.kit import run, settle
from tests.unit.stoker_common.http2.peer_kit import Network, both, streamed, unary

pytestmark = pytest.mark.unit

LIMITS = Limits(
    response_bytes=2000, unread_bytes=5000, control_burst=500, control_per_s=0.0, resets_per_s=0, pings_idle=False
)
# A busy machine is slow at making frames up.
SLOW = [HealthCheck.too_slow]
BLOCKS = [
    b"\x88",
    b"\x8d",
    Encoder().encode([(":status", "200"), ("content-type", "application/grpc")]),
    Encoder().encode([(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "7")]),
    Encoder().encode([("grpc-status", "0"), ("x-bin", "AAE")]),
    Encoder().encode([("grpc-status", "13"), ("grpc-message", "%zz%C3")]),
]
STREAMS = st.sampled_from([0, 1, 1, 3, 3, 5, 5, 7, 2, 2**31 - 1])
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(BLOCKS),
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
# Good answers, for mistakes to fall in the middle of something.
ANSWERS = st.builds(
    lambda stream, data, end: (
        head(len(BLOCKS[2]), 1, 4, stream)
        + BLOCKS[2]
        + head(len(data) + 5, 0, 0, stream)
        + message_prefix(len(data))
        + data
        + (head(len(BLOCKS[4]), 1, 5, stream) + BLOCKS[4] if end else b"")
    ),
    st.sampled_from([1, 3, 5]),
    st.binary(max_size=50),
    st.booleans(),
)
SESSIONS = st.lists(st.one_of(FRAMES, ANSWERS), max_size=25)


async def survives(pieces: Sequence[bytes]) -> None:
    net = Network()
    net.silent = True
    async with net.channel(LIMITS) as channel:
        calls = [unary(channel, wait_for_ready=True), streamed(channel), both(channel)]
        heard: list[bytes] = []
        calls[2].hear(heard.append)
        await settle()
        bad = net.peers[0]
        for piece in pieces:
            bad.frames(piece)
            unread = sum(each.inbox.unread_bytes for each in bad.connection.streams.values())
            assert unread <= LIMITS.unread_bytes
            await asyncio.sleep(0)
        net.silent = False
        await settle()
        bad.transport.abort()
        await asyncio.sleep(3.0)
        assert not bad.connection.streams
        # Where the first one was never a server, those that wait are another's.
        for call in calls:
            call.cancel()
        good = net.channel(LIMITS)
        call = unary(good)
        peer = await net.peer()
        peer.answer(1, b"well")
        assert await call == b"well"
        await good.close()


@settings(deadline=None, suppress_health_check=SLOW, max_examples=200)
@given(SESSIONS)
def test_any_frames(frames: list[bytes]) -> None:
    run(lambda: survives([settings_frame({}), *frames]))


@settings(deadline=None, suppress_health_check=SLOW, max_examples=80)
@given(st.lists(ANSWERS, min_size=1, max_size=5), st.data())
def test_a_good_session_with_bytes_changed_cut_out_or_cut_off(answers: list[bytes], data: st.DataObject) -> None:
    session = bytearray(settings_frame({}) + b"".join(answers))
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
    run(lambda: survives([settings_frame({}), head(len(data), 1, 5, 1) + data]))
