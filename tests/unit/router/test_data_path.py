"""The data path of doubtful endpoints: each is asked, and what they say is taken together."""

import asyncio
import random
from collections.abc import Collection
from typing import cast

from discovery.catalog import CatalogState
from discovery.endpoint import Endpoint
from router.attempt import Transport
from router.data_path import DataPath
from router.fleet import Fleet
from router.ledger import Ledger
from tests.fakes.clock import FakeClock
from tests.unit.router.builders import MODEL, endpoint, key, view


class FakeTransport:
    """Says who answers. Those in `slow` say so when they are let."""

    def __init__(self, alive: Collection[str] = (), slow: Collection[str] = ()) -> None:
        self._alive = alive
        self._slow = slow
        self.let = asyncio.Event()

    async def answers(self, endpoint: Endpoint, timeout_s: float) -> bool:
        """See `Transport`."""
        if endpoint.server in self._slow:
            await self.let.wait()
        return endpoint.server in self._alive


class Doubts:
    """A fleet that the catalog has lost, and what became of it."""

    def __init__(self, servers: int, transport: FakeTransport) -> None:
        self.endpoints = [endpoint(f"a-{number}") for number in range(servers)]
        missing = {each.server: CatalogState.MISSING for each in self.endpoints}
        self.fleet = Fleet(Ledger(FakeClock()), lambda members: None)
        self.fleet.publish(view(self.endpoints, missing))
        self.snapshots = 0
        self.fleet.listen(self._count)
        self.forgotten: list[list[str]] = []
        self.data_path = DataPath(self.fleet, cast(Transport, transport), self._forget, rng=random.Random(0))

    def _count(self) -> None:
        self.snapshots += 1

    def _forget(self, endpoints: Collection[Endpoint]) -> None:
        self.forgotten.append([each.server for each in endpoints])


async def test_who_answers_stays_and_who_does_not_is_forgotten() -> None:
    doubts = Doubts(3, FakeTransport(alive=["a-1"]))
    await doubts.data_path.check()
    assert sorted(name for names in doubts.forgotten for name in names) == ["a-0", "a-2"]
    assert set(doubts.fleet.snapshot.holders[MODEL].by_key) == {key(doubts.endpoints[1])}


async def test_a_fleet_that_is_gone_is_forgotten_at_once_not_server_by_server() -> None:
    # One snapshot and one view a server made the loop stand still for 0.8 s when 100 servers left (chaos, fault 23).
    doubts = Doubts(200, FakeTransport())
    await doubts.data_path.check()
    assert sum(len(names) for names in doubts.forgotten) == 200
    assert len(doubts.forgotten) <= 2
    assert doubts.snapshots <= 2


async def test_one_that_hangs_holds_up_no_other() -> None:
    transport = FakeTransport(slow=["a-0"])
    doubts = Doubts(2, transport)
    checking = asyncio.ensure_future(doubts.data_path.check())
    for _ in range(5):
        await asyncio.sleep(0)
    assert doubts.forgotten == [["a-1"]]
    transport.let.set()
    await checking
    assert doubts.forgotten == [["a-1"], ["a-0"]]
