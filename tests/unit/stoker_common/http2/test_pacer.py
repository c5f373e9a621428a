"""What waits together fails alone."""

import asyncio

import pytest

from stoker_common.http2.frames import message_prefix
from stoker_common.http2.pacer import Pacer
from tests.unit.stoker_common.http2.kit import Client, Handlers, run, served

pytestmark = pytest.mark.unit

INTERNAL = 13


def test_one_that_fails_takes_none_with_it() -> None:
    async def test() -> None:
        pacer = Pacer(asyncio.get_running_loop(), 0.004)
        let_go: list[str] = []
        failed: list[Exception] = []
        fault = ValueError("no")

        def fail() -> None:
            raise fault

        pacer.hold(lambda: let_go.append("a"), failed.append)
        pacer.hold(fail, failed.append)
        pacer.hold(lambda: let_go.append("b"), failed.append)
        await asyncio.sleep(0.005)
        assert let_go == ["a", "b"] and failed == [fault]
        pacer.hold(lambda: let_go.append("c"), failed.append)
        await asyncio.sleep(0.005)
        assert let_go == ["a", "b", "c"]

    run(test)


def test_a_stream_whose_part_cannot_be_sent_ends_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        streams = [client.open("Put", b"a b 1000") for _ in range(3)]
        await client.hear()

        def fail(_: bytes) -> None:
            raise ValueError("no")

        bad = client.connection.streams[streams[1]]
        monkeypatch.setattr(type(bad), "send", lambda self, data: fail(data) if self is bad else send(self, data))
        await asyncio.sleep(0.0041)
        await client.hear()
        both = b"".join(message_prefix(1) + each for each in (b"a", b"b"))
        assert [client.messages[stream] for stream in (streams[0], streams[2])] == [both, both]
        assert client.status(streams[1]) == INTERNAL
        assert set(client.connection.streams) == {streams[0], streams[2]}

    from stoker_common.http2.server_stream import ServerStream

    send = ServerStream.send
    run(test)
