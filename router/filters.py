"""Which holders of a model may get a request: each filter says why not, or nothing."""

from collections.abc import Collection, Mapping

from router.ejection import Breakers
from router.ledger import NOTHING, Account, Key
from router.room import Rooms
from router.snapshot import Member

Excluded = str


def tried(key: Key, tried_before: Collection[Key]) -> Excluded:
    """Never an endpoint that this request has already tried."""
    return "already tried" if key in tried_before else ""


def ejected(key: Key, breakers: Breakers) -> Excluded:
    """Not an endpoint that experience has taken out, unless so much of its zone is out that it must be wrong."""
    if not breakers.refuses(key) or breakers.doubts(key):
        return ""
    return f"{breakers.state(key).value}: {breakers.cause(key)}"


def full(member: Member, accounts: Mapping[Key, Account], rooms: Rooms | None, now_s: float) -> Excluded:
    """Not an endpoint that has no room for one more; it may have a moment later."""
    if rooms is None:
        return ""
    return "full" if rooms.full(member.endpoint, accounts.get(member.key, NOTHING), now_s) else ""
