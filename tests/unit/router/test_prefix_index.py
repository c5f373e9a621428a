import random
import struct
import time
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from router.ledger import Key
from router.prefix_index import PrefixIndex
from stoker.v1.worker_link_pb2 import CacheDigest, CachedSession

A, B, C = ("a", "e"), ("b", "e"), ("c", "e")
CHAIN = tuple(range(100, 120))
NEWS = ("full", "more", "less", "drop")


def digest(sequence: int, *added: int, removed: Sequence[int] = (), full: bool = False, **sessions: int) -> CacheDigest:
    return CacheDigest(
        sequence=sequence,
        full=full,
        added=packed(added),
        removed=packed(removed),
        sessions=[CachedSession(session=int(name[1:]), tokens=tokens) for name, tokens in sessions.items()],
    )


def packed(blocks: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(blocks)}Q", *blocks)


def index(**depths: int) -> PrefixIndex:
    made = PrefixIndex()
    for server, depth in depths.items():
        assert made.update((server, "e"), digest(1, *CHAIN[:depth], full=True))
    return made


def test_each_server_holds_as_much_as_it_said() -> None:
    depths = index(a=5, b=20, c=0).depths(CHAIN)
    assert (depths.get(A), depths.get(B), depths.get(C), depths.get(("d", "e"))) == (5, 20, 0, 0)
    assert list(depths) == [B, A]
    assert len(depths) == 2
    assert dict(depths) == {B: 20, A: 5}


def test_nobody_holds_what_nobody_said() -> None:
    made = index(a=5)
    assert not dict(made.depths((1, 2, 3)))
    assert not dict(made.depths(()))
    assert not dict(PrefixIndex().depths(CHAIN))


def test_changes_add_and_remove() -> None:
    made = index(a=5, b=5)
    assert made.update(A, digest(2, *CHAIN[5:8], removed=[1, 2, 3]))
    assert made.update(B, digest(2, removed=CHAIN[2:5]))
    assert dict(made.depths(CHAIN)) == {A: 8, B: 2}
    assert (made.blocks(A), made.blocks(B)) == (8, 2)


def test_after_a_gap_a_server_counts_no_more_until_it_begins_anew() -> None:
    made = index(a=5, b=5)
    assert not made.update(A, digest(3, *CHAIN[5:8]))
    assert dict(made.depths(CHAIN)) == {B: 5}
    assert not made.update(A, digest(4, *CHAIN[:3]))
    assert made.update(A, digest(9, *CHAIN[:3], full=True))
    assert made.update(A, digest(10, *CHAIN[3:4]))
    assert dict(made.depths(CHAIN)) == {B: 5, A: 4}


def test_a_server_that_never_began_is_asked_to() -> None:
    assert not PrefixIndex().update(A, digest(1, *CHAIN))


def test_what_begins_anew_replaces_what_was() -> None:
    made = index(a=20)
    assert made.update(A, digest(2, *CHAIN[:3], full=True, s7=9))
    assert dict(made.depths(CHAIN)) == {A: 3}
    assert made.update(A, digest(3, full=True))
    assert not dict(made.depths(CHAIN))
    assert not made.session(7)


def test_a_server_that_is_gone_takes_nothing_of_the_others_along() -> None:
    made = index(a=20, b=10, c=10)
    made.keep([A, C])
    assert B not in made
    assert dict(made.depths(CHAIN)) == {A: 20, C: 10}
    # Its bit is another's when its blocks are forgotten, and not before.
    assert made.update(("d", "e"), digest(1, *CHAIN[:2], full=True))
    assert made.update(("f", "e"), digest(1, *CHAIN[:1], full=True))
    assert dict(made.depths(CHAIN)) == {A: 20, C: 10, ("d", "e"): 2, ("f", "e"): 1}


def test_sessions_are_found_where_they_are() -> None:
    made = PrefixIndex()
    made.update(A, digest(1, full=True, s7=100, s8=5))
    made.update(B, digest(1, full=True, s7=50))
    assert made.session(7) == {A: 100, B: 50}
    assert made.sessions(A) == 2
    made.update(A, digest(2, s7=0))
    assert made.session(7) == {B: 50}
    made.drop(B)
    assert made.session(7) == {}
    assert made.session(0) == {}


def test_what_is_being_computed_counts_until_it_is_there_or_never_will_be() -> None:
    made = index(a=5, b=5)
    one, other = made.expect(A, CHAIN[:12]), made.expect(A, CHAIN[:9])
    assert dict(made.depths(CHAIN)) == {A: 12, B: 5}
    one.close()
    one.close()
    assert dict(made.depths(CHAIN)) == {A: 9, B: 5}
    other.close()
    assert dict(made.depths(CHAIN)) == {A: 5, B: 5}


def test_what_was_expected_of_a_server_that_begins_anew_ends_quietly() -> None:
    made = index(a=5)
    expected = made.expect(A, CHAIN)
    made.update(A, digest(2, full=True))
    made.update(B, digest(1, *CHAIN[:2], full=True))
    assert dict(made.depths(CHAIN)) == {B: 2}
    expected.close()
    made.update(C, digest(1, *CHAIN[:3], full=True))
    assert dict(made.depths(CHAIN)) == {C: 3, B: 2}


def test_nothing_is_expected_of_a_server_that_announces_nothing() -> None:
    made = PrefixIndex()
    made.expect(A, CHAIN).close()
    assert not dict(made.depths(CHAIN))


def test_a_hundred_thousand_blocks_come_and_go_without_a_long_stop() -> None:
    rng = random.Random(1)
    made = PrefixIndex()
    blocks = [rng.getrandbits(64) for _ in range(100_000)]
    pieces = [digest(at // 1024 + 1, *blocks[at : at + 1024], full=not at) for at in range(0, 100_000, 1024)]
    longest_s = []
    for piece in pieces:
        began_s = time.thread_time()
        assert made.update(A, piece)
        longest_s.append(time.thread_time() - began_s)
    began_s = time.thread_time()
    made.drop(A)
    assert not dict(made.depths(blocks[:100]))
    # Measured: 0.3 ms a piece, nothing to drop all. A table that grows takes 10 ms now and then.
    assert sorted(longest_s)[len(longest_s) // 2] < 0.01
    assert time.thread_time() - began_s < 0.05
    for sequence in range(1, 60):
        made.update(B, digest(sequence, *CHAIN, full=True))
    assert made.blocks(B) == len(CHAIN)
    assert not made._gone
    assert len(made._holders) == len(CHAIN)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(NEWS), st.integers(0, 20))))
def test_it_is_as_one_dict_a_server_would_be(news: list[tuple[str, str, int]]) -> None:
    made, model, sequences = PrefixIndex(), dict[Key, int](), dict[Key, int]()
    for server, what, depth in news:
        key = (server, "e")
        sequence = sequences[key] = sequences.get(key, 0) + 1
        now = model.get(key, -1)
        if what == "full":
            assert made.update(key, digest(sequence, *CHAIN[:depth], full=True))
            model[key] = depth
        elif what == "drop":
            made.drop(key)
            model.pop(key, None)
        elif now < 0:
            assert not made.update(key, digest(sequence, *CHAIN[:depth]))
        elif what == "more":
            assert made.update(key, digest(sequence, *CHAIN[:depth]))
            model[key] = max(now, depth)
        else:
            assert made.update(key, digest(sequence, removed=CHAIN[depth:]))
            model[key] = min(now, depth)
        assert dict(made.depths(CHAIN)) == {key: depth for key, depth in model.items() if depth > 0}
