"""Output that is put goes out at once, or soon and joined; never out of order, never beyond what its client takes."""

import asyncio

import pytest

from stoker_common.http2.limits import Limits
from tests.unit.stoker_common.http2.kit import Client, Handlers, run, served

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (b"a", [b"a"]),
        (b"a 5 b 5 c", [b"a", b"b", b"c"]),
        (b"a b c 5 d", [b"a", b"bc", b"d"]),
        (b"a 1 b 1 c 9 d", [b"a", b"bc", b"d"]),
        (b"a b c", [b"a", b"bc"]),
        (b"a b +c d", [b"a", b"b", b"+c", b"d"]),
        (b"+a b c 5 +d", [b"+a", b"b", b"c", b"+d"]),
    ],
)
def test_what_comes_sooner_than_every_four_milliseconds_is_joined(asked: bytes, said: list[bytes]) -> None:
    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers))
        stream = client.open("Put", asked)
        await client.hear()
        await asyncio.sleep(0.1)
        await client.hear()
        assert client.said(stream) == said
        assert client.status(stream) == 0
        assert all(handlers.room)

    run(test)


def test_it_waits_no_longer_than_that() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        stream = client.open("Put", b"a b 1000")
        await client.hear()
        assert client.said(stream) == [b"a"]
        await asyncio.sleep(0.0041)
        await client.hear()
        assert client.said(stream) == [b"a", b"b"]

    run(test)


def test_streams_that_wait_go_out_together() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        streams = [client.open("Put", b"a b 1000") for _ in range(20)]
        await client.hear()
        writes = client.transport.writes
        await asyncio.sleep(0.0041)
        await client.hear()
        assert client.transport.writes == writes + 1
        assert [client.said(stream) for stream in streams] == [[b"a", b"b"]] * 20

    run(test)


def test_a_client_that_is_behind_has_no_room() -> None:
    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers, Limits(backlog_bytes=100)), window=20)
        await client.hear()
        client.open("Put", b" 5 ".join([b"x" * 30] * 8))
        await client.hear(take=False)
        await asyncio.sleep(0.1)
        assert handlers.room == [True] * 4 + [False] * 4

    run(test)


def test_what_is_held_has_a_bound() -> None:
    async def test() -> None:
        handlers = Handlers()
        client = Client(served(handlers), window=1 << 20)
        await client.hear()
        stream = client.open("Put", b" ".join([b"x" * 10_000] * 20))
        await client.hear()
        await client.hear()
        assert handlers.room == [True] * 8 + [False] * 12
        assert sum(map(len, client.said(stream))) == 80_000

    run(test)


def test_what_is_held_when_the_client_goes_is_dropped() -> None:
    async def test() -> None:
        client = Client(served(Handlers()))
        stream = client.open("Put", b"a b 1000")
        await client.hear()
        client.cancel(stream)
        await client.hear()
        await asyncio.sleep(0.1)
        await client.hear()
        assert client.said(stream) == [b"a"]
        assert not client.connection.streams

    run(test)
