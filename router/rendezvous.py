"""Where a session is at home: the server that its hash likes best (rendezvous hashing, Thaler and Ravishankar 1998).

Every router makes the same choice. A server that comes takes a share of all sessions, one that goes leaves its own to
all others, and nobody else moves.
"""

from functools import lru_cache
from hashlib import sha256

_MASK = (1 << 64) - 1
# Fibonacci hashing: 2^64 over the golden ratio, odd.
_SPREAD = 0x9E3779B97F4A7C15


@lru_cache(4096)
def point(server: str) -> int:
    """The server's place among all 64-bit numbers."""
    return int.from_bytes(sha256(server.encode()).digest()[:8], "little")


def liking(session: int, server: str) -> int:
    """How much the session likes the server."""
    mixed = ((session ^ point(server)) * _SPREAD) & _MASK
    return ((mixed ^ mixed >> 32) * _SPREAD) & _MASK
