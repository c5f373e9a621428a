"""A server whose streams crawl is ejected and emptied, paced by the others' room; one that is full is let alone."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from discovery.endpoint import Endpoint, Load
from router.crawl import EVERY_S, Crawl
from router.ejection import Breakers, BreakerState, EjectionRules
from router.errors import Fault
from router.fleet import Fleet
from router.ledger import Ledger
from router.running import Attempt, Running
from stoker.v1 import generation_pb2
from stoker_common.transcript import Transcript
from tests.fakes.clock import FakeClock
from tests.unit.router.builders import MODEL, endpoint, key, view

QUICK_S, CRAWLING_S = 0.2, 2.0
LOAD = Load(running=10, prefill_tokens_per_second=1000.0, itl_ms=200.0)


class Stream:
    """One attempt, and what came on it."""

    def __init__(self, up: "Up", server: Endpoint, n: int, held: ExitStack) -> None:
        self.tokens = 1.0
        self.unread: int | None = 0
        asked = generation_pb2.Generation(model=MODEL, sampling=generation_pb2.Sampling(n=n))
        transcript = Transcript(model=MODEL, prompt_token_ids=tuple(range(100)), started=True)
        passed_on = lambda: int(self.tokens)  # noqa: E731 - as the router writes it
        self.interrupt = held.enter_context(up.running.attempt(key(server), asked, transcript, passed_on))
        self.interrupt.bind(lambda error: None, lambda: self.unread)

    @property
    def moved(self) -> bool:
        """Whether it was told to go on elsewhere."""
        return self.interrupt.error is not None


class Up:
    """Three servers of a zone with ten streams each."""

    def __init__(self, held: ExitStack, servers: int = 3, n: int = 1, places: int = 64) -> None:
        self.clock = FakeClock()
        self.ledger = Ledger(self.clock)
        self.fleet = Fleet(self.ledger, lambda members: None)
        self.running = Running()
        self.breakers = Breakers(EjectionRules(jitter=0), self.clock, random.Random(1))
        self.servers = [endpoint(f"a-{i}", max_streams=places, load=LOAD) for i in range(servers)]
        self.fleet.publish(view(self.servers))
        self.breakers.keep({key(each): "a" for each in self.servers})
        self.crawl = Crawl(self.fleet, self.running, self.ledger, self.breakers, self._movable, self.clock)
        self.streams = {each.server: [Stream(self, each, n, held) for _ in range(10)] for each in self.servers}
        self.interval_s = {each.server: QUICK_S for each in self.servers}
        self.unmovable: set[str] = set()

    def _movable(self, on: tuple[str, str], attempt: Attempt) -> bool:
        return on[0] not in self.unmovable

    def pass_(self, seconds: float, every_s: float = EVERY_S) -> None:
        """Time goes by and tokens come."""
        for _ in range(int(seconds / every_s)):
            self.clock.advance(every_s)
            for server, streams in self.streams.items():
                for stream in streams:
                    stream.tokens += every_s / self.interval_s[server]
            self.crawl.look()

    def report(self, server: int, **changes: float) -> None:
        """A server's load."""
        self.ledger.report(key(self.servers[server]), replace(LOAD, **changes))  # type: ignore[arg-type]

    def moved(self, server: str = "a-0") -> int:
        """How many of a server's streams were told to go on elsewhere."""
        return sum(each.moved for each in self.streams[server])


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_the_streams_of_a_server_that_crawls_go_on_elsewhere_and_it_is_out(held: ExitStack) -> None:
    up = Up(held)
    up.pass_(10)
    up.interval_s["a-0"] = CRAWLING_S
    up.pass_(10)
    assert up.moved() == 10
    assert (up.moved("a-1"), up.moved("a-2")) == (0, 0)
    assert up.breakers.state(key(up.servers[0])) is BreakerState.EJECTED
    assert up.breakers.cause(key(up.servers[0])) == "slow"
    error = up.streams["a-0"][0].interrupt.error
    assert error is not None
    assert (error.fault, error.refusal.reason) == (Fault.MOVED, "SERVER_SLOW")


def test_they_leave_no_faster_than_the_others_compute_their_prompts(held: ExitStack) -> None:
    up = Up(held)
    up.pass_(10)
    up.interval_s["a-0"] = CRAWLING_S
    while not up.moved():
        up.pass_(EVERY_S)
    # Two targets, 1,000 tokens/s each, a quarter of a second's worth a look; 100 tokens a stream.
    assert up.moved() == 5
    up.pass_(EVERY_S)
    assert up.moved() == 10


def test_while_the_others_have_prompts_to_compute_they_wait(held: ExitStack) -> None:
    up = Up(held)
    up.pass_(10)
    up.interval_s["a-0"] = CRAWLING_S
    bookings = [up.ledger.book(key(each), 5000) for each in up.servers[1:]]
    up.pass_(10)
    assert up.moved() == 0
    for booking in bookings:
        booking.first_token()
    up.pass_(1)
    assert up.moved() == 10


def test_no_more_leave_than_the_others_have_places_for(held: ExitStack) -> None:
    up = Up(held, places=13)
    for i in range(3):
        up.report(i)
    up.pass_(10)
    up.interval_s["a-0"] = CRAWLING_S
    while not up.moved():
        up.pass_(EVERY_S)
    assert up.moved() == 5  # of six places; the prompts allow as many
    for i in (1, 2):
        up.report(i, running=13)
    up.pass_(5)
    assert up.moved() == 5


@pytest.mark.parametrize(
    "load", [{"running": 60, "waiting": 4}, {"kv_usage": 0.97}, {"waiting_prompt_tokens": 2000}], ids=str
)
def test_a_server_that_is_full_or_computes_prompts_is_not_judged(held: ExitStack, load: dict[str, float]) -> None:
    up = Up(held)
    up.pass_(10)
    up.interval_s["a-0"] = CRAWLING_S
    up.report(0, **load)
    up.pass_(30)
    assert up.moved() == 0
    up.report(0)
    up.pass_(10)
    assert up.moved() == 10


def test_half_of_a_zone_at_most(held: ExitStack) -> None:
    up = Up(held, servers=4)
    up.pass_(10)
    up.interval_s |= {"a-0": CRAWLING_S}
    up.pass_(7)
    up.interval_s |= {"a-1": CRAWLING_S}
    up.pass_(10)
    # Two of four are out, and a third and fourth that slow down later stay in.
    assert (up.moved("a-0"), up.moved("a-1")) == (10, 10)
    up.interval_s |= {"a-2": CRAWLING_S * 4, "a-3": CRAWLING_S}
    up.pass_(10)
    assert (up.moved("a-2"), up.moved("a-3")) == (0, 0)


def test_all_that_crawl_at_once_stay(held: ExitStack) -> None:
    up = Up(held)
    up.pass_(10)
    up.interval_s = dict.fromkeys(up.interval_s, CRAWLING_S)
    up.pass_(30)
    assert [up.moved(server) for server in up.streams] == [0, 0, 0]


def test_what_cannot_go_elsewhere_stays(held: ExitStack) -> None:
    up = Up(held)
    up.unmovable = {"a-0"}
    up.pass_(10)
    up.interval_s["a-0"] = CRAWLING_S
    up.pass_(40)
    assert up.moved() == 0
    assert up.breakers.ejected_for_s(key(up.servers[0])) > 0, "its streams tell more than a probe would"


def test_clients_that_do_not_read_are_no_slowness(held: ExitStack) -> None:
    up = Up(held)
    up.pass_(10)
    for stream in up.streams["a-0"]:
        stream.unread, stream.tokens = int(stream.tokens), 0.0
    reading = up.streams["a-0"]
    up.streams["a-0"] = []
    for _ in range(40):
        for stream in reading:
            assert stream.unread is not None
            stream.unread += 2
        up.pass_(EVERY_S)
    # The server has sent all: what is left is the client's.
    for stream in reading:
        stream.unread = None
    up.pass_(20)
    assert not any(stream.moved for stream in reading)


def test_streams_of_several_outputs_say_nothing(held: ExitStack) -> None:
    up = Up(held, n=4)
    up.pass_(10)
    up.interval_s["a-0"] = CRAWLING_S
    up.pass_(30)
    assert up.moved() == 0


def test_a_router_that_slept_does_not_judge_by_it(held: ExitStack) -> None:
    up = Up(held)
    up.pass_(10)
    interval_s, up.interval_s["a-0"] = up.interval_s["a-0"], 1e6
    up.pass_(30, every_s=10.0)
    up.interval_s["a-0"] = interval_s
    up.pass_(10)
    assert up.moved() == 0
