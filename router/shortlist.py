"""Which holders a pick looks at: all of a few; of many those that hold the session, and some at random.

The best of a random dozen is nearly as good as the best of all (the power of d choices: Mitzenmacher 2001), and a pick
then costs the same in any fleet.
"""

import random
from collections.abc import Mapping

from router.ledger import Key
from router.snapshot import Holder, Holders

# Looked at in the home zone and elsewhere. Weighing one takes 3 us, and a pick may take 100 (DESIGN.md section 10).
AT_HOME, ELSEWHERE = 12, 4


def shortlist(holders: Holders, held: Mapping[Key, int], home: str, rng: random.Random) -> list[Holder]:
    """The holders to weigh, for a router in the zone `home`."""
    if len(holders.by_key) <= AT_HOME + ELSEWHERE:
        return list(holders.by_key.values())
    chosen = {key: holders.by_key[key] for key in held if key in holders.by_key}
    here = holders.by_zone.get(home, ())
    elsewhere = [holder for zone, there in holders.by_zone.items() if zone != home for holder in there]
    for pool, most in ((here, AT_HOME), (elsewhere, ELSEWHERE if here else AT_HOME + ELSEWHERE)):
        for holder in rng.sample(pool, min(most, len(pool))):
            chosen[holder.member.key] = holder
    return list(chosen.values())
