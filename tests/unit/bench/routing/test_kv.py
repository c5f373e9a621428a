import random

from bench.routing.kv import Kv


def test_idle_blocks_go_in_order_and_a_chains_last_first() -> None:
    kv = Kv(40, 10)
    assert kv.reserve(30)
    kv.commit((1, 2, 3))
    kv.release((1, 2, 3), 0)
    assert kv.match((1, 2, 3)) == 3
    assert kv.reserve(15)
    assert kv.match((1, 2, 3)) == 2
    assert kv.evictions == 1


def test_what_is_held_is_never_evicted() -> None:
    kv = Kv(20, 10)
    assert kv.reserve(20)
    kv.commit((1, 2))
    assert not kv.reserve(1)
    assert kv.match((1, 2)) == 2


def test_equal_blocks_are_kept_once() -> None:
    kv = Kv(100, 10)
    assert kv.reserve(10)
    kv.commit((1,))
    assert kv.reserve(10)
    kv.commit((1,))
    assert kv.used == 10
    kv.release((1,), 0)
    assert kv.used == 10
    kv.release((1,), 0)
    assert kv.used == 0


def test_it_holds_what_was_taken_and_never_more_than_there_is() -> None:
    rng, kv = random.Random(1), Kv(1000, 10)
    held: list[tuple[tuple[int, ...], int]] = []
    for _ in range(5000):
        if rng.random() < 0.5 or not held:
            chain = tuple(range(start := rng.randrange(200), start + rng.randrange(1, 5)))
            hits = kv.match(chain)
            kv.share(chain[:hits])
            rest = (len(chain) - hits) * 10 + rng.randrange(10)
            if kv.reserve(rest):
                kv.commit(chain[hits:])
                held.append((chain, rest - (len(chain) - hits) * 10))
            else:
                kv.release(chain[:hits], 0)
        else:
            kv.release(*held.pop(rng.randrange(len(held))))
        blocks = {block for chain, _ in held for block in chain}
        assert kv.used == 10 * len(blocks) + sum(tokens for _, tokens in held)
        assert kv.used <= kv.capacity
        assert kv.private >= 0
