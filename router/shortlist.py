"""Which holders a pick looks at: all of a few; of many, some at random and those with more of the prompt.

The best of a random dozen is nearly as good as the best of all (the power of d choices: Mitzenmacher 2001), and a pick
then costs the same in any fleet.
"""

import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import islice

from router.ledger import Key
from router.rendezvous import liking
from router.snapshot import Holder, Holders

# Looked at in the home zone and elsewhere. Weighing one takes 3 us, and a pick may take 100 (DESIGN.md section 10).
AT_HOME, ELSEWHERE = 12, 4
# Of those that hold more of the prompt than most of these. Few, or some would be chosen more often than others.
_HOLDERS = 3
# The servers next to a session on the ring, of which these many are its homes: more even than the next ones alone.
_NEXT, _HOMES = 8, 2
_FEW = AT_HOME + ELSEWHERE + _HOLDERS + _HOMES


def shortlist(
    holders: Holders, held: Mapping[Key, int], homes: Sequence[Holder], home: str, rng: random.Random
) -> list[Holder]:
    """The holders to weigh, for a router in the zone `home`.

    `held`: tokens of the prompt, those with most first; `homes`: where its session is at home.
    """
    if len(holders.by_key) <= _FEW:
        return list(holders.by_key.values())
    here = holders.by_zone.get(home, ())
    elsewhere = [holder for zone, there in holders.by_zone.items() if zone != home for holder in there]
    chosen: dict[Key, Holder] = {}
    for pool, most in ((here, AT_HOME), (elsewhere, ELSEWHERE if here else AT_HOME + ELSEWHERE)):
        _draw(chosen, pool, most, rng)
    known = sorted([held.get(key, 0) for key in chosen])[len(chosen) // 2]
    for key in islice(held, _HOLDERS):
        if held[key] > known and key in holders.by_key:
            chosen[key] = holders.by_key[key]
    for holder in homes:
        chosen[holder.member.key] = holder
    return list(chosen.values())


def _draw(into: dict[Key, Holder], pool: Sequence[Holder], most: int, rng: random.Random) -> None:
    """So many of the pool at random, or all of it. A third of the time of `rng.sample`, whose order nobody needs."""
    size, full = len(pool), len(into) + min(most, len(pool))
    if most >= size:
        into.update((holder.member.key, holder) for holder in pool)
        return
    draw = rng.random
    while len(into) < full:
        holder = pool[int(draw() * size)]
        into[holder.member.key] = holder


def homes(holders: Holders, session: int, home: str) -> list[Holder]:
    """Where a session is at home, the same for every router in the zone: its servers on the ring, best liked first.

    Empty for a few holders, of which all are weighed, and without a session.
    """
    if not session or len(holders.by_key) <= _FEW:
        return []
    zone = home if home in holders.by_zone else min(holders.by_zone)
    ring = holders.by_zone[zone]
    at = bisect_left(holders.points[zone], session)
    next_ones = ring[at : at + _NEXT]
    if len(next_ones) < _NEXT:
        next_ones += ring[: min(at, _NEXT - len(next_ones))]
    return sorted(next_ones, key=lambda holder: liking(session, holder.member.endpoint.server), reverse=True)[:_HOMES]
