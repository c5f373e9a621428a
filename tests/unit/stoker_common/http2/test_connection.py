"""One connection, spoken to by another implementation of HTTP/2: what it answers, in what order, in how many writes."""

import asyncio

import pytest
from h2.events import PingAckReceived, RemoteSettingsChanged, WindowUpdated
from h2.settings import SettingCodes
from hpack import Encoder

from stoker_common.http2.frames import END_HEADERS, FIRST_FRAME_BYTES, HEADERS, RST_STREAM, ErrorCode, head
from stoker_common.http2.limits import Limits
from stoker_common.http2.reader import FrameReader
from tests.unit.stoker_common.http2.kit import Client, Handlers, headers, run, served, settle

pytestmark = pytest.mark.unit

OK, CANCELLED, DEADLINE, EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 1, 4, 8, 12, 13


def test_a_call_is_answered_in_one_write() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        await client.hear()
        before = client.transport.writes
        stream = client.open("Twice", b"ab")
        await client.hear()
        assert client.transport.writes == before + 1
        assert client.headers[stream] == {":status": "200", "content-type": "application/grpc"}
        assert client.message(stream) == b"abab"
        assert client.trailers[stream] == {"grpc-status": "0"}
        assert stream in client.ended and not client.resets
        assert not client.connection.streams

    run(test)


def test_what_many_streams_got_in_a_turn_is_one_write() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        await client.hear()
        before = client.transport.writes
        streams = [client.open("Twice", b"%d" % i) for i in range(50)]
        await client.hear()
        assert client.transport.writes == before + 1
        assert [client.message(stream) for stream in streams] == [b"%d" % i * 2 for i in range(50)]

    run(test)


def test_it_says_what_it_takes() -> None:
    async def test() -> None:
        client = Client(served(Handlers(), Limits(streams=77, stream_window_bytes=1 << 17, metadata_bytes=5000)))
        await client.hear()
        (told,) = [event for event in client.events if isinstance(event, RemoteSettingsChanged)]
        values = {key: change.new_value for key, change in told.changed_settings.items()}
        assert values[SettingCodes.MAX_CONCURRENT_STREAMS] == 77
        assert values[SettingCodes.INITIAL_WINDOW_SIZE] == 1 << 17
        assert values[SettingCodes.MAX_HEADER_LIST_SIZE] == 5000
        assert client.h2.outbound_flow_control_window == Limits().connection_window_bytes

    run(test)


def test_frames_of_one_byte_each_and_padded_ones() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, headers("Twice"))
        for byte in b"\0\0\0\0\2ab":
            client.h2.send_data(stream, bytes([byte]), pad_length=byte % 7)
        client.h2.end_stream(stream)
        for byte in client.h2.data_to_send():
            client.frames(bytes([byte]))
        await client.hear()
        assert client.message(stream) == b"abab"

    run(test)


def test_a_header_block_in_several_frames() -> None:
    async def test() -> None:
        client = Client(served(Handlers(), Limits(metadata_bytes=60_000)))
        client.h2.max_outbound_frame_size = 16_384
        stream = client.open("Twice", b"a", metadata=(("x-long", "x" * 40_000),))
        await client.hear()
        assert client.message(stream) == b"aa"

    run(test)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({":method": "GET"}, "405"),
        ({"content-type": "text/plain"}, "415"),
        ({"content-type": "application/grpcish"}, "415"),
    ],
)
def test_what_is_http_and_not_grpc_is_told_so(change: dict[str, str], status: str) -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, list((dict(headers("Twice")) | change).items()), end_stream=True)
        client.frames(client.h2.data_to_send())
        await client.hear()
        assert client.headers[stream] == {":status": status}
        assert stream in client.ended and not client.connection.streams

    run(test)


@pytest.mark.parametrize("content_type", ["application/grpc+proto", "application/grpc;x=y"])
def test_kinds_of_grpc_are_grpc(content_type: str) -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(
            stream, list((dict(headers("Twice")) | {"content-type": content_type}).items()), end_stream=False
        )
        client.say(stream, b"a", end=True)
        await client.hear()
        assert client.message(stream) == b"aa"

    run(test)


def test_an_unknown_compression_is_unimplemented_and_told_what_is_known() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        stream = client.open("Twice", b"a", metadata=(("grpc-encoding", "zstd"),))
        await client.hear()
        assert client.status(stream) == UNIMPLEMENTED
        assert client.headers[stream]["grpc-accept-encoding"] == "identity,deflate,gzip"

    run(test)


@pytest.mark.parametrize("messages", [(), (b"a", b"b")])
def test_one_request_is_one_request(messages: tuple[bytes, ...]) -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        stream = client.open("Twice", *messages)
        await client.hear()
        assert client.status(stream) == UNIMPLEMENTED
        assert not client.connection.streams

    run(test)


def test_a_message_marked_compressed_without_an_encoding_is_an_error() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        stream = client.open("Twice", end=False)
        client.data(stream, b"\1\0\0\0\1a", end=True)
        await client.hear()
        assert client.status(stream) == INTERNAL

    run(test)


def test_a_deadline_ends_a_call_whose_request_never_comes() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        stream = client.open("Twice", end=False, metadata=(("grpc-timeout", "500m"),))
        await client.hear()
        assert client.connection.streams
        await asyncio.sleep(0.51)
        await client.hear()
        assert client.status(stream) == DEADLINE
        assert client.resets[stream] == ErrorCode.NO_ERROR
        assert not client.connection.streams

    run(test)


def test_an_answer_before_the_request_has_ended_asks_for_no_more_of_it() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        stream = client.open("Nothing", end=False)
        await client.hear()
        assert client.status(stream) == UNIMPLEMENTED
        assert client.resets[stream] == ErrorCode.NO_ERROR
        assert not client.connection.streams

    run(test)


def test_a_reset_cancels_the_handler() -> None:
    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers))
        stream = client.open("Hold", b"a")
        await client.hear()
        assert handlers.running == 1
        client.cancel(stream)
        await client.hear()
        assert not handlers.running and not client.connection.streams

    run(test)


def test_windows_are_kept_and_handlers_wait_for_them() -> None:
    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers), window=1000)
        await client.hear()
        stream = client.open("Send", b"100 1000")
        other = client.open("Twice", b"a")
        await client.hear(take=False)
        assert len(client.messages[stream]) == 1000
        assert client.message(other) == b"aa"
        (waits,) = [each.out.backlog_bytes for each in client.connection.streams.values()]
        assert waits <= Limits().backlog_bytes + 2000
        assert handlers.running == 1
        client.h2.increment_flow_control_window(50_000, stream)
        client.frames(client.h2.data_to_send())
        await client.hear(take=False)
        assert len(client.messages[stream]) == 51_000
        assert handlers.running == 1
        client.h2.increment_flow_control_window(60_000, stream)
        client.h2.increment_flow_control_window(60_000)
        client.frames(client.h2.data_to_send())
        await client.hear(take=False)
        assert len(client.messages[stream]) == 100 * 1005
        assert stream in client.ended and not handlers.running

    run(test)


def test_the_connections_window_is_shared_in_turns() -> None:
    async def test() -> None:
        client = Client(served(Handlers()), window=1 << 20)
        await client.hear()
        streams = [client.open("Send", b"40 1000") for _ in range(4)]
        await client.hear(take=False)
        got = [len(client.messages.get(stream, b"")) for stream in streams]
        assert sum(got) == 65_535
        client.h2.increment_flow_control_window(1 << 20)
        client.frames(client.h2.data_to_send())
        await client.hear(take=False)
        assert [len(client.messages[stream]) for stream in streams] == [40 * 1005] * 4
        assert set(streams) <= client.ended

    run(test)


def test_a_client_may_make_its_windows_smaller_and_larger() -> None:
    async def test() -> None:
        client = Client(served(Handlers()), window=1000)
        await client.hear()
        stream = client.open("Send", b"10 1000")
        await client.hear(take=False)
        for window in (0, 3000, 20_000):
            client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
            client.frames(client.h2.data_to_send())
            await client.hear(take=False)
            assert len(client.messages[stream]) == min(10 * 1005, max(1000, window))
        assert stream in client.ended

    run(test)


def test_a_client_is_given_back_its_window_while_it_is_read() -> None:
    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers))
        stream = client.open("Collect", end=False)
        await client.hear()
        for _ in range(40):
            client.say(stream, bytes(200_000))
            await client.hear()
        assert sum(map(len, handlers.read)) == 40 * 200_000
        assert client.h2.local_flow_control_window(stream) >= 1 << 19

    run(test)


def test_a_client_that_is_not_read_is_not_given_more() -> None:
    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers))
        stream = client.open("Stay", end=False)
        await client.hear()
        while client.h2.local_flow_control_window(stream) >= 100_005:
            client.say(stream, bytes(100_000))
            await client.hear()
        sent = (1 << 20) - client.h2.local_flow_control_window(stream)
        assert sent > 900_000
        assert not [event for event in client.events if isinstance(event, WindowUpdated) and event.stream_id]
        handlers.go.set()
        await client.hear()
        assert sum(map(len, handlers.read)) + 5 * len(handlers.read) == sent
        assert client.h2.local_flow_control_window(stream) == 1 << 20

    run(test)


def test_pings_are_answered() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        client.h2.ping(b"12345678")
        client.frames(client.h2.data_to_send())
        await client.hear()
        assert [event.ping_data for event in client.events if isinstance(event, PingAckReceived)] == [b"12345678"]

    run(test)


def test_a_server_that_leaves_serves_what_is_there_and_on_its_way() -> None:
    async def test() -> None:
        handlers = Handlers()
        server = served(handlers)
        client, idle = Client(server), Client(server)
        first = client.open("Collect", end=False)
        await client.hear()
        stopping = asyncio.ensure_future(server.stop(100.0))
        await settle()
        # It has not heard yet.
        second = client.open("Collect", end=False)
        await client.hear()
        await idle.hear()
        assert [last for last, _, _ in client.goaways] == [(1 << 31) - 1, second]
        assert idle.transport.closed and not client.transport.closed
        for stream in (first, second):
            client.data(stream, b"", end=True)
        await client.hear()
        assert client.status(first) == client.status(second) == OK
        assert client.transport.closed
        await asyncio.wait_for(stopping, 1)

    run(test)


def test_a_client_that_does_not_answer_learns_of_the_end_by_time() -> None:
    async def test() -> None:
        server = served(Handlers())
        client = Client(server)
        await client.hear()
        stopping = asyncio.ensure_future(server.stop(100.0))
        await settle()
        assert not client.transport.closed
        await asyncio.sleep(Limits().goaway_s + 0.1)
        assert client.transport.closed
        await asyncio.wait_for(stopping, 1)

    run(test)


def test_a_handler_is_waited_for_when_the_server_ends() -> None:
    async def test() -> None:
        handlers = Handlers()
        server = served(handlers)
        client = Client(server)
        client.open("Hold", b"a")
        await client.hear()
        await server.stop(0.5)
        assert handlers.began == 1 and not handlers.running
        assert client.transport.closed

    run(test)


def test_streams_out_of_turn_are_told_so() -> None:
    """And their client does not wait for an answer."""

    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers))
        late = client.h2.get_next_available_stream_id()
        first = late + 2
        client.h2.send_headers(first, headers("Hold"))
        client.say(first, b"a", end=True)
        fields = Encoder().encode(headers("Hold"))
        client.frames(head(len(fields), HEADERS, END_HEADERS, late) + fields)
        await settle()
        frames = list(FrameReader(FIRST_FRAME_BYTES, greeted=True).feed(bytes(client.transport.written)))
        assert (RST_STREAM, 0, late, ErrorCode.STREAM_CLOSED.to_bytes(4)) in frames
        assert handlers.running == 1 and not client.transport.closed

    run(test)
