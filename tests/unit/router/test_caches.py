import random
import struct
from collections import Counter
from collections.abc import Sequence

from router.caches import Caches
from router.ejection import Breakers, EjectionRules
from router.ledger import Booking, Key, Ledger
from router.policy import Conditions, Policy
from router.prefix_index import Expected
from router.request import Request
from router.scorers import Rates
from router.sessions import Sessions
from stoker.v1 import generation_pb2 as pb
from stoker.v1.worker_link_pb2 import CacheDigest, CachedSession
from stoker_common import prefix
from stoker_common.prefix import Prefix
from tests.fakes.clock import FakeClock
from tests.unit.router.builders import MODEL, endpoint, key, snapshot

A, B = ("a", "e"), ("b", "e")
SHARED = "You are a careful stoker. " * 300


def chain(text: str) -> Prefix:
    return prefix.of(pb.Generation(model=MODEL, text=text), MODEL)


def request(text: str = "", session: int = 0, **fields: bool | int) -> Request:
    made = chain(text)
    return Request("r", MODEL, max(1, len(text) // 4), 50, session, prefix=made, **fields)  # type: ignore[arg-type]


def holds(caches: Caches, key: Key, blocks: Sequence[int], **sessions: int) -> None:
    told = [CachedSession(session=int(name[1:]), tokens=tokens) for name, tokens in sessions.items()]
    added = struct.pack(f"<{len(blocks)}Q", *blocks)
    assert caches.announced(key, CacheDigest(sequence=1, full=True, added=added, sessions=told))


def held(caches: Caches, of: Request) -> dict[Key, int]:
    return dict(caches.held(of, caches.session(of)))


def test_the_larger_of_the_prefix_and_the_session_counts() -> None:
    caches = Caches(Sessions(10))
    asked = request("x" * 2048, session=7)
    holds(caches, A, asked.prefix.hashes[:4], s7=100)
    holds(caches, B, asked.prefix.hashes[:2], s7=300)
    assert held(caches, asked) == {A: 256, B: 300}
    assert held(caches, request("x" * 2048)) == {A: 256, B: 128}


def test_where_blocks_say_about_the_same_as_the_session_the_session_is_believed() -> None:
    caches = Caches(Sessions(10))
    asked = request("x" * 2048, session=7)
    holds(caches, A, asked.prefix.hashes[:4], s7=228)  # 256 by bytes
    holds(caches, B, asked.prefix.hashes[:4], s7=227)
    assert held(caches, asked) == {A: 228, B: 256}


def test_those_with_most_come_first() -> None:
    caches = Caches(Sessions(10))
    asked = request("x" * 2048)
    for place, server in enumerate("abcdef"):
        holds(caches, (server, "e"), asked.prefix.hashes[: place + 1])
    assert [server for server, _ in caches.held(asked, {})] == list("fedcba")
    found = caches.held(asked, {})
    assert found[A] == 64
    assert ("z", "e") not in found
    assert len(found) == 6


def test_what_a_server_announces_goes_before_what_the_router_remembers() -> None:
    caches = Caches(Sessions(10))
    asked = request(session=7)
    caches.left(A, asked, 900)
    caches.left(B, asked, 500)
    assert held(caches, asked) == {A: 900, B: 500}
    holds(caches, A, ())
    assert held(caches, asked) == {B: 500}
    caches.silent(A)
    assert held(caches, asked) == {A: 900, B: 500}
    caches.found(A, asked, 32)
    assert caches.session(asked) == {A: 32, B: 500}


def test_a_request_that_reads_no_cache_finds_none_but_knows_its_sessions_server() -> None:
    caches = Caches(Sessions(10))
    asked = request("x" * 2048, session=7, reads_cache=False)
    holds(caches, A, asked.prefix.hashes, s7=100)
    assert held(caches, asked) == {}
    assert caches.session(asked) == {A: 100}


def test_what_was_generated_elsewhere_is_cached_nowhere() -> None:
    caches = Caches(Sessions(10))
    whole = request("x" * 2048)
    holds(caches, A, whole.prefix.hashes)
    resumed = Request("r", MODEL, 512 + 300, 50, prefix=whole.prefix, resumed_tokens=300)
    assert held(caches, resumed) == {A: 512}


def test_servers_that_left_the_catalog_are_forgotten() -> None:
    caches = Caches(Sessions(10))
    asked = request("x" * 2048)
    holds(caches, A, asked.prefix.hashes)
    holds(caches, B, asked.prefix.hashes)
    caches.keep([B])
    assert held(caches, asked) == {B: 512}


class Burst:
    """Requests that begin alike, picked and booked as the router does."""

    def __init__(self, servers: int) -> None:
        self.endpoints = [endpoint(f"a-{place}", max_streams=64) for place in range(servers)]
        self.snapshot = snapshot(*self.endpoints)
        self.clock = FakeClock()
        self.rng = random.Random(3)
        self.ledger = Ledger(self.clock)
        self.breakers = Breakers(EjectionRules(), self.clock, self.rng)
        self.caches = Caches(Sessions(10))
        self.sequences: Counter[Key] = Counter()
        self.policy = Policy("a", Rates(prefill_tokens_per_second=5000, itl_ms=10))
        for each in self.endpoints:
            self.announce(key(each), (), full=True)

    def announce(self, of: Key, blocks: Sequence[int], *, full: bool = False) -> None:
        self.sequences[of] += 1
        added = struct.pack(f"<{len(blocks)}Q", *blocks)
        assert self.caches.announced(of, CacheDigest(sequence=self.sequences[of], full=full, added=added))

    def send(self, asked: Request) -> tuple[Key, int, Booking, Expected]:
        """Where it goes, what the router expects in the cache there, and its bookings."""
        found = self.caches.held(asked, {})
        conditions = Conditions(self.ledger.accounts, self.breakers, found, {}, self.clock())
        chosen = self.policy.choose(asked, self.snapshot, (), conditions, self.rng)
        assert chosen is not None
        server, cached = chosen.candidate.holder.member.key, chosen.candidate.cost.cached_tokens
        expected = self.caches.expect(server, asked)
        return server, cached, self.ledger.book(server, asked.prompt_tokens - cached), expected


def test_a_burst_of_the_same_prefix_onto_an_idle_fleet_spreads() -> None:
    burst = Burst(8)
    sent = [burst.send(request(SHARED + f"{place} " * 40)) for place in range(64)]
    each = Counter(server for server, *_ in sent)
    assert set(each) == {key(endpoint) for endpoint in burst.endpoints}
    assert max(each.values()) <= 12
    # The prefix is computed once a server: whoever waits behind it there finds it, and is booked for its own part only.
    prefix_tokens = len(SHARED) // 4
    booked = sum(account.own_prompt_tokens for account in burst.ledger.accounts.values())
    assert booked < 8 * (prefix_tokens + 64) + 64 * 110
    assert sum(cached == 0 for _, cached, *_ in sent) == 8


def test_once_the_prefix_is_somewhere_it_draws_until_the_wait_there_is_as_long() -> None:
    burst = Burst(8)
    asked = request(SHARED)
    server, _, booking, expected = burst.send(asked)
    burst.announce(server, asked.prefix.hashes)
    booking.first_token()
    expected.close()
    order = [burst.send(request(SHARED + f"{place} " * 40))[0] for place in range(64)]
    assert order[:4] == [server] * 4
    assert len(set(order)) > 1


def test_what_failed_is_expected_no_more() -> None:
    burst = Burst(2)
    asked = request(SHARED)
    server, _, booking, expected = burst.send(asked)
    assert burst.caches.held(asked, {}).get(server)
    booking.close()
    expected.close()
    assert not burst.caches.held(asked, {}).get(server)
