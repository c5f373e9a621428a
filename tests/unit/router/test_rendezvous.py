import random
from collections import Counter

from router.rendezvous import liking, point

SERVERS = [f"a-{place}" for place in range(7)]


def home(session: int, servers: list[str]) -> str:
    return max(servers, key=lambda server: liking(session, server))


def sessions() -> list[int]:
    rng = random.Random(1)
    return [rng.getrandbits(64) for _ in range(7000)]


def test_every_server_gets_its_share() -> None:
    shares = Counter(home(session, SERVERS) for session in sessions())
    assert all(850 < share < 1150 for share in shares.values())


def test_one_that_goes_leaves_its_sessions_to_all_others() -> None:
    left = SERVERS[1:]
    moved = Counter(home(session, left) for session in sessions() if home(session, SERVERS) == SERVERS[0])
    assert set(moved) == set(left)
    assert max(moved.values()) < 1.5 * min(moved.values())
    assert all(home(session, left) == at for session in sessions() if (at := home(session, SERVERS)) != SERVERS[0])


def test_places_are_the_same_in_every_process() -> None:
    assert point("a-0") == 0x835C6CC917185768
