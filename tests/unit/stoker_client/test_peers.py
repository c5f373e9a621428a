"""A client's connections on a fake clock: those that nobody names any more are closed, those in use are not."""

from typing import Any, cast

from stoker_client.peer import Peer
from stoker_client.peers import IDLE_S, Peers
from tests.fakes.clock import FakeClock


class FakePeer:
    def __init__(self, address: str) -> None:
        self.address = address
        self.busy = False
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class Bench:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.peers = Peers(lambda address: cast(Peer, FakePeer(address)), self.clock)

    def at(self, address: str) -> Any:
        return self.peers.at(address)


async def test_a_fleet_that_comes_and_goes_leaves_no_connection_behind() -> None:
    bench = Bench()
    for pod in range(500):
        bench.at(f"10.0.{pod // 250}.{pod % 250}:7070")
        bench.at("steady:7070")
        bench.clock.advance(60.0)
        await bench.peers.tidy()
        assert len(bench.peers) <= IDLE_S / 60.0 + 2


async def test_one_on_which_something_runs_stays() -> None:
    bench = Bench()
    first = bench.at("a:1")
    first.busy = True
    bench.clock.advance(2 * IDLE_S)
    await bench.peers.tidy()
    await bench.peers.drop("a:1")
    assert bench.at("a:1") is first and not first.closed
    first.busy = False
    await bench.peers.drop("a:1")
    assert first.closed and bench.at("a:1") is not first


async def test_closing_closes_all() -> None:
    bench = Bench()
    made = [bench.at(f"{number}:1") for number in range(3)]
    await bench.peers.close()
    assert all(peer.closed for peer in made) and not len(bench.peers)
