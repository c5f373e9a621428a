import random
from dataclasses import dataclass, field

import pytest

from model_server.prefixes import CachedPrefixes
from stoker.v1 import generation_pb2 as pb
from stoker_common import prefix
from stoker_common.prefix import Prefix

BLOCK = 64  # tokens of one block of 256 bytes, at 4 bytes a token


def chain(text: str) -> Prefix:
    return prefix.of(pb.Generation(model="m", text=text), "m")


def tokens(of: Prefix) -> int:
    return of.size_bytes // 4


@dataclass
class Told:
    """What a router that hears everything believes."""

    blocks: set[int] = field(default_factory=set)
    sessions: dict[int, int] = field(default_factory=dict)

    def block(self, block: int, there: bool) -> None:
        (self.blocks.add if there else self.blocks.remove)(block)

    def session(self, session: int, held: int) -> None:
        self.sessions[session] = held


class Cache(CachedPrefixes):
    """The record under test, of a cache of so many blocks of ours."""

    def __init__(self, blocks: int) -> None:
        self.told = Told()
        super().__init__(blocks * BLOCK, 16, self.told.block, self.told.session)

    def compute(self, text: str, session: int = 0) -> Prefix:
        made = chain(text)
        self.add(made, tokens(made), session)
        return made

    def check(self) -> None:
        """What was told is what is there, and no block is there without those before it."""
        blocks = list(self.blocks())
        assert self.told.blocks == set(blocks)
        assert {session: held for session, held in self.told.sessions.items() if held} == dict(self.sessions())


def test_a_computed_prompt_is_held_up_to_its_last_whole_block() -> None:
    cache = Cache(10)
    made = cache.compute("a" * 1000)
    assert cache.held(made) == 3
    assert cache.held(chain("a" * 600 + "b" * 400)) == 2
    assert cache.held(chain("b" * 1000)) == 0
    assert list(cache.blocks()) == list(made.hashes)
    cache.check()


def test_what_was_used_longest_ago_goes_first_and_ends_before_beginnings() -> None:
    cache = Cache(6)
    first, second = cache.compute("a" * 768), cache.compute("b" * 768)
    cache.compute("a" * 768)
    cache.compute("c" * 512)
    assert cache.held(first) == 3
    assert cache.held(second) == 1
    assert cache.tokens <= 6 * BLOCK
    cache.check()


def test_a_prompt_longer_than_the_cache_keeps_its_beginning() -> None:
    cache = Cache(3)
    made = cache.compute("a" * 2560)
    assert cache.held(made) == 3
    cache.check()


def test_a_session_is_its_last_prompt_and_answer_and_goes_with_them() -> None:
    cache = Cache(8)
    cache.compute("a" * 1000, session=7)
    assert cache.told.sessions == {7: 240}  # whole blocks of the engine's
    cache.compute("a" * 1400, session=7)
    assert dict(cache.sessions()) == {7: 336}
    cache.compute("b" * 1700)
    assert cache.told.sessions == {7: 0}
    assert not dict(cache.sessions())
    cache.check()


def test_a_flood_of_short_sessions_is_bounded_by_the_cache() -> None:
    cache = Cache(10)
    for session in range(1, 1000):
        cache.compute("hello", session)
    assert len(dict(cache.sessions())) == 10 * BLOCK // 16
    cache.check()


def test_where_the_engine_found_less_what_lies_beyond_is_forgotten() -> None:
    cache = Cache(40)
    made = cache.compute("a" * 2048, session=1)
    longer = cache.compute("a" * 2048 + "b" * 1024, session=2)
    other = cache.compute("c" * 1024)
    cache.correct(made, 512, believed=8, cached_tokens=128, session=0)
    # Two blocks were found, and a third may have been: blocks are counted in bytes.
    assert cache.held(longer) == 2
    assert cache.held(other) == 4
    assert not dict(cache.sessions())
    cache.check()


@pytest.mark.parametrize("found", [512, 500, 481])
def test_a_little_less_than_believed_is_as_believed(found: int) -> None:
    cache = Cache(40)
    made = cache.compute("a" * 2048)
    cache.correct(made, 512, believed=8, cached_tokens=found, session=0)
    assert cache.held(made) == 8


def test_a_session_whose_history_changes_is_trusted_as_much_as_it_deserves() -> None:
    cache = Cache(400)
    made = chain("a" * 4000)
    for _ in range(8):
        cache.add(made, 1000, session=5)
        cache.correct(made, 1000, believed=0, cached_tokens=250, session=5)
    assert 240 <= dict(cache.sessions())[5] <= 260
    cache.correct(made, 1000, believed=0, cached_tokens=1000, session=5)
    cache.add(made, 1000, session=5)
    assert cache.told.sessions[5] > 600


@pytest.mark.parametrize(("session_tokens", "found"), [(345, 336), (336, 320), (337, 336), (16, 0), (1, 0)])
def test_what_is_told_of_a_session_is_what_the_engine_will_find_of_it(session_tokens: int, found: int) -> None:
    cache = Cache(400)
    made = chain("a" * 4000)
    for _ in range(3):
        cache.add(made, session_tokens, session=5)
        # One that fills no block is here all the same, and a hard session waits for it.
        assert cache.told.sessions[5] == max(1, found)
        cache.correct(made, session_tokens + 60, believed=0, cached_tokens=found, session=5)


def engine_blocks(of: Prefix, name: int) -> list[int]:
    """Keys of the engine's blocks of 16 tokens."""
    return [name * 1000 + place for place in range(1, tokens(of) // 16 + 1)]


def test_what_lay_in_a_block_that_the_engine_dropped_is_gone_and_what_builds_on_it() -> None:
    cache = Cache(40)
    one, other = chain("a" * 2048), chain("b" * 2048)
    mine = engine_blocks(one, 1)
    cache.add(one, tokens(one), 7, mine)
    cache.add(other, tokens(other), 8, engine_blocks(other, 2))
    # The engine drops ends before beginnings: the last block has nothing of ours but the session's end.
    cache.dropped(mine[-1:])
    assert (cache.held(one), set(dict(cache.sessions()))) == (7, {8})
    cache.dropped(reversed(mine[11:-1]))
    assert cache.held(one) == 2  # 11 of its blocks are 176 tokens
    cache.dropped([99])
    assert cache.held(other) == 8
    cache.check()


def test_a_block_that_was_forgotten_otherwise_may_be_dropped_too_and_computed_again() -> None:
    cache = Cache(40)
    made = chain("a" * 1024)
    mine = engine_blocks(made, 1)
    cache.add(made, tokens(made), 0, mine)
    cache.correct(made, tokens(made), 4, 0, 0)
    assert cache.held(made) == 0
    cache.dropped(mine)
    cache.add(made, tokens(made), 0, mine)
    assert cache.held(made) == 4
    cache.dropped(mine[:4])
    assert cache.held(made) == 0
    cache.check()


def test_an_emptied_cache_holds_nothing() -> None:
    cache = Cache(40)
    made = cache.compute("a" * 2048, session=1)
    cache.clear()
    assert cache.held(made) == 0
    assert cache.tokens == 0
    cache.check()


def test_whatever_comes_it_stays_within_the_cache_and_its_routers_believe_what_is_there() -> None:
    rng = random.Random(4)
    cache = Cache(30)
    for _ in range(2000):
        head, tail = "ab"[rng.randrange(2)], chr(99 + rng.randrange(9))
        made = chain(head * 256 * rng.randrange(1, 5) + tail * rng.randrange(4000))
        believed, session = cache.held(made), rng.randrange(6)
        found = rng.randrange(tokens(made)) if rng.random() < 0.2 else prefix_tokens(made, believed)
        cache.correct(made, tokens(made), believed, found, session)
        cache.add(made, tokens(made), session)
        assert cache.tokens <= 30 * BLOCK
        cache.check()
        known = set(cache.blocks())
        assert all(block in known for block in made.hashes[: cache.held(made)])


def prefix_tokens(made: Prefix, blocks: int) -> int:
    return made.tokens(blocks, tokens(made))
