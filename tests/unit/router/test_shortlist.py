import random
from collections import Counter

from router.ledger import Key
from router.shortlist import homes, shortlist
from router.snapshot import Holders
from tests.unit.router.builders import MODEL, endpoint, snapshot


def fleet(home: int, elsewhere: int = 0) -> Holders:
    here = [endpoint(f"a-{place}") for place in range(home)]
    there = [endpoint(f"b-{place}", "b") for place in range(elsewhere)]
    return snapshot(*here, *there).holders[MODEL]


def listed(holders: Holders, held: dict[Key, int] | None = None, session: int = 0, seed: int = 1) -> set[str]:
    chosen = shortlist(holders, held or {}, homes(holders, session, "a"), "a", random.Random(seed))
    names = [holder.member.endpoint.server for holder in chosen]
    assert len(names) == len(set(names))
    return set(names)


def of(server: str) -> Key:
    return server, f"{server}-e1"


def test_all_of_a_few() -> None:
    assert len(listed(fleet(10, 6))) == 16


def test_some_at_home_and_a_few_elsewhere() -> None:
    names = listed(fleet(60, 60))
    assert Counter(name[0] for name in names) == {"a": 12, "b": 4}


def test_who_holds_more_than_others_is_looked_at() -> None:
    holders = fleet(60, 60)
    everywhere = {of(f"a-{place}"): 100 for place in range(60) if place != 9}
    held = {of("b-7"): 900, of("a-9"): 800, of("gone"): 700} | everywhere
    for seed in range(20):
        assert {"b-7", "a-9"} <= listed(holders, held, seed=seed)


def test_what_all_hold_draws_to_none() -> None:
    holders = fleet(60)
    held = {of(f"a-{place}"): 100 for place in range(60)}
    seen = Counter(name for seed in range(1200) for name in listed(holders, held, seed=seed))
    assert max(seen.values()) < 2 * min(seen.values())


def test_a_session_finds_the_same_homes_in_every_router() -> None:
    holders = fleet(60)
    for session in (1, 1 << 63, (1 << 64) - 1):
        always = set.intersection(*(listed(holders, session=session, seed=seed) for seed in range(40)))
        assert len(always) == 2
