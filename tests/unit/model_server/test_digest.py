import random
import struct
from dataclasses import dataclass, field

from model_server.digest import MOST_BLOCKS, MOST_SESSIONS, Digest, Feed
from stoker.v1 import worker_link_pb2
from stoker_common.prefix import Prefix


@dataclass
class Reader:
    """A router that is told by a feed."""

    feed: Feed = field(default_factory=Feed)
    blocks: set[int] = field(default_factory=set)
    sessions: dict[int, int] = field(default_factory=dict)
    digests: list[worker_link_pb2.CacheDigest] = field(default_factory=list)

    def read(self) -> int:
        """Take all there is; returns the number of pieces."""
        pieces = 0
        while (digest := self.feed.take()) is not None:
            pieces += 1
            self.digests.append(digest)
            if digest.full:
                self.blocks, self.sessions = set(), {}
            self.blocks |= {block for (block,) in struct.iter_unpack("<Q", digest.added)}
            self.blocks -= {block for (block,) in struct.iter_unpack("<Q", digest.removed)}
            self.sessions.update({each.session: each.tokens for each in digest.sessions})
        return pieces


def chain(rng: random.Random, blocks: int) -> Prefix:
    return Prefix(tuple(rng.getrandbits(64) for _ in range(blocks)), 256 * blocks, b"state")


def test_who_does_not_ask_is_told_nothing() -> None:
    digest, reader = Digest(), Reader()
    digest.cache(10_000, 16).add(chain(random.Random(1), 5), 320, 7)
    assert reader.read() == 0


def test_who_asks_is_told_everything_and_then_what_changes() -> None:
    rng = random.Random(1)
    digest, reader = Digest(), Reader()
    cache = digest.cache(10 * 64, 16)
    first, second = chain(rng, 5), chain(rng, 8)
    cache.add(first, 320, 7)
    digest.attach(reader.feed)
    assert reader.feed.behind
    assert reader.read() == 1
    assert reader.blocks == set(first.hashes)
    assert reader.sessions == {7: 304}
    cache.add(second, 512, 0)
    assert not reader.feed.behind
    assert reader.read() == 1
    assert reader.blocks == set(cache.blocks())
    assert reader.sessions == {7: 0}
    assert reader.read() == 0
    assert [(each.sequence, each.full) for each in reader.digests] == [(1, True), (2, False)]


def test_asked_again_it_begins_anew_and_counts_on() -> None:
    digest, reader = Digest(), Reader()
    cache = digest.cache(10_000, 16)
    cache.add(chain(random.Random(1), 5), 320, 0)
    digest.attach(reader.feed)
    reader.read()
    reader.blocks = {1, 2, 3}
    digest.attach(reader.feed)
    reader.read()
    assert reader.blocks == set(cache.blocks())
    assert [(each.sequence, each.full) for each in reader.digests] == [(1, True), (2, True)]


def test_an_empty_cache_is_told_too() -> None:
    digest, reader = Digest(), Reader()
    digest.cache(10_000, 16)
    digest.attach(reader.feed)
    assert reader.read() == 1
    assert reader.digests[0].full


def test_a_long_digest_comes_in_pieces_beginnings_first() -> None:
    rng = random.Random(1)
    digest, reader = Digest(), Reader()
    cache = digest.cache(10**9, 16)
    chains = [chain(rng, 100) for _ in range(60)]
    for session, each in enumerate(chains, 1):
        cache.add(each, 6400, session * 10)
    digest.attach(reader.feed)
    piece = reader.feed.take()
    assert piece is not None
    assert len(piece.added) == 8 * MOST_BLOCKS
    assert len(piece.sessions) == min(60, MOST_SESSIONS)
    assert piece.ByteSize() < 20_000
    told = {block for (block,) in struct.iter_unpack("<Q", piece.added)}
    for each in chains:
        held = [block in told for block in each.hashes]
        assert held == sorted(held, reverse=True)
    # What changes meanwhile is told as it is in the end.
    cache.clear()
    reader.read()
    assert reader.blocks - told == set()
    assert set(reader.sessions.values()) <= {0}


def test_a_gone_routers_feed_grows_no_more() -> None:
    digest, reader = Digest(), Reader()
    cache = digest.cache(10_000, 16)
    digest.attach(reader.feed)
    reader.read()
    digest.detach(reader.feed)
    cache.add(chain(random.Random(1), 5), 320, 7)
    assert reader.read() == 0


def test_two_engines_caches_are_told_together() -> None:
    rng = random.Random(1)
    digest, reader = Digest(), Reader()
    one, other = digest.cache(10_000, 16), digest.cache(10_000, 16)
    one.add(chain(rng, 5), 320, 0)
    digest.attach(reader.feed)
    other.add(chain(rng, 6), 384, 0)
    reader.read()
    assert len(reader.blocks) == 11
    one.clear()
    reader.read()
    assert reader.blocks == set(other.blocks())
