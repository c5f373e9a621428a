"""The simulator's KV cache."""

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from model_server.engines.sim_kv import KvCache, block_hash, root_hash

pytestmark = pytest.mark.unit


def _chain(length: int, first: int = 0, salt: str = "") -> list[bytes]:
    chain = [block_hash(root_hash(salt), [first])]
    while len(chain) < length:
        chain.append(block_hash(chain[-1], [first]))
    return chain


def _store(cache: KvCache, chain: Sequence[bytes]) -> None:
    assert cache.reserve(len(chain))
    for known in chain:
        cache.commit(known)


def test_a_hash_is_of_all_that_came_before() -> None:
    one, other, salted = _chain(2), _chain(2, first=1), _chain(2, salt="s")
    assert len({*one, *other, *salted, block_hash(other[0], [0])}) == 7


def test_released_blocks_stay_until_their_place_is_needed() -> None:
    cache = KvCache(4)
    chain = _chain(3)
    _store(cache, chain)
    assert cache.used == 3
    cache.release(chain, 0)
    assert (cache.used, cache.idle, cache.match(chain)) == (0, 3, 3)
    assert cache.reserve(2)
    # The chain's end went first: its beginning is of use to more.
    assert (cache.used, cache.idle, cache.match(chain)) == (2, 2, 2)


def test_longest_unused_goes_first() -> None:
    cache = KvCache(4)
    old, young = _chain(2), _chain(2, first=1)
    for chain in (old, young):
        _store(cache, chain)
        cache.release(chain, 0)
    cache.share(old)
    cache.release(old, 0)
    assert cache.reserve(2)
    assert (cache.match(old), cache.match(young)) == (2, 0)


def test_shared_blocks_count_once_and_are_not_evicted() -> None:
    cache = KvCache(4)
    chain = _chain(2)
    _store(cache, chain)
    cache.share(chain)
    assert cache.used == 2
    cache.release(chain, 0)
    assert cache.used == 2
    assert not cache.reserve(3)
    assert cache.reserve(2)
    assert cache.match(chain) == 2


def test_same_content_computed_twice_is_kept_once() -> None:
    cache = KvCache(4)
    chain = _chain(1)
    _store(cache, chain)
    _store(cache, chain)
    assert cache.used == 1
    cache.release(chain, 0)
    cache.release(chain, 0)
    assert (cache.used, cache.idle) == (0, 1)


class KvMachine(RuleBasedStateMachine):
    """Sequences come, grow, share and go in any order: no block is lost or made."""

    BLOCKS = 8

    def __init__(self) -> None:
        super().__init__()
        self.cache = KvCache(self.BLOCKS)
        self.held: list[tuple[list[bytes], int]] = []

    @rule(first=st.integers(0, 2), length=st.integers(1, 5), private=st.integers(0, 2))
    def begin(self, first: int, length: int, private: int) -> None:
        chain = _chain(length, first)
        hits = self.cache.match(chain)
        self.cache.share(chain[:hits])
        if not self.cache.reserve(length - hits + private):
            self.cache.release(chain[:hits], 0)
            return
        for known in chain[hits:]:
            self.cache.commit(known)
        self.held.append((chain, private))

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.held:
            chain, private = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            self.cache.release(chain, private)

    @invariant()
    def accounts_are_true(self) -> None:
        known = {block for chain, _ in self.held for block in chain}
        assert self.cache.used == len(known) + sum(private for _, private in self.held)
        assert self.cache.used + self.cache.idle <= self.BLOCKS
        for chain, _ in self.held:
            assert self.cache.match(chain) == len(chain)


TestKvMachine = KvMachine.TestCase
TestKvMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
