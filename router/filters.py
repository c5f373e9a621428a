"""Which holders of a model may get a request: each filter says why not, or nothing."""

from collections.abc import Collection

from router.ejection import Breakers
from router.ledger import Key

Excluded = str


def tried(key: Key, tried_before: Collection[Key]) -> Excluded:
    """Never an endpoint that this request has already tried."""
    return "already tried" if key in tried_before else ""


def ejected(key: Key, breakers: Breakers) -> Excluded:
    """Not an endpoint that experience has taken out, unless so much of its zone is out that it must be wrong."""
    if not breakers.refuses(key) or breakers.doubts(key):
        return ""
    return f"{breakers.state(key).value}: {breakers.cause(key)}"
