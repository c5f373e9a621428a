"""A link's writer in virtual time: whatever wakes it, the other side hears something in time."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from stoker.v1 import worker_link_pb2
from stoker_common.link.outbox import Outbox
from stoker_common.link.writer import LinkWriter
from tests.fakes.virtual_loop import VirtualLoop

BEAT = worker_link_pb2.AttachResponse(heartbeat=worker_link_pb2.Heartbeat())


class Link:
    """Writes what its outbox has, else heartbeats."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.outbox = Outbox()
        self.sent: list[tuple[float, str]] = []
        self.writer = LinkWriter(self.outbox, self._send, self.loop.time)

    async def run(self, for_s: float) -> None:
        try:
            async with asyncio.timeout(for_s):
                while True:
                    await self.writer.turn()
                    if not self.outbox.empty:
                        await self.writer.send(self.outbox.take(1))
                    elif self.writer.due:
                        await self.writer.send(BEAT)
        except TimeoutError:
            return

    async def _send(self, data: bytes) -> None:
        kind = worker_link_pb2.AttachResponse.FromString(data).WhichOneof("message")
        self.sent.append((round(self.loop.time(), 3), str(kind)))


def run(test: Coroutine[Any, Any, None]) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(test)
    finally:
        loop.close()


def test_one_that_is_woken_for_nothing_beats_all_the_same() -> None:
    async def test() -> None:
        link = Link()
        for at in range(1, 20):
            link.loop.call_later(at * 0.1 + 0.05, link.outbox.wake)
        await link.run(2.1)
        assert link.sent == [(at / 2, "heartbeat") for at in (1, 2, 3, 4)]

    run(test())


def test_what_is_sent_puts_the_beat_off() -> None:
    async def test() -> None:
        link = Link()
        link.loop.call_later(0.3, link.outbox.put, 1, b"x", 1)
        link.loop.call_later(1.0, link.outbox.say, worker_link_pb2.AttachResponse(goodbye=worker_link_pb2.Goodbye()))
        await link.run(1.6)
        assert link.sent == [(0.3, "step"), (0.8, "heartbeat"), (1.0, "goodbye"), (1.5, "heartbeat")]

    run(test())


def test_a_loop_that_was_blocked_tells_how_late_it_is() -> None:
    async def test() -> None:
        link = Link()
        link.loop.call_later(0.4, link.loop._jump.__dict__.update, {"now_s": 2.0})  # type: ignore[attr-defined]
        turn = asyncio.ensure_future(link.writer.turn())
        await turn
        assert link.writer.due
        assert round(link.writer.lag_s, 3) == 1.5

    run(test())
