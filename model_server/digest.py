"""What routers are told of a server's caches when they ask: all of it once, in pieces, and then what changes.

Changes are gathered for each router and go along with what is sent anyway, so that they cost no message of their own.
The router whose request changed the cache gets them with that request's next part, the others with the next heartbeat
at the latest. A block that came and went in between is told once.
"""

import struct
from collections.abc import Iterable
from itertools import islice

from model_server.prefixes import CachedPrefixes
from stoker.v1 import worker_link_pb2

# In one digest: 8 KiB, which a router takes in within a millisecond.
MOST_BLOCKS = 1024
MOST_SESSIONS = 512


class Feed:
    """What one router has not been told yet. Belongs to one event loop, as all here."""

    def __init__(self) -> None:
        self._blocks: dict[int, bool] = {}
        self._sessions: dict[int, int] = {}
        self._sequence = 0
        self._full = False

    @property
    def behind(self) -> bool:
        """Whether there is more to tell than goes along with something else."""
        return self._full or len(self._blocks) > MOST_BLOCKS or len(self._sessions) > MOST_SESSIONS

    def restart(self, blocks: Iterable[int], sessions: Iterable[tuple[int, int]]) -> None:
        """Tell everything anew, from the next digest on."""
        self._blocks = dict.fromkeys(blocks, True)
        self._sessions = dict(sessions)
        self._full = True

    def block(self, block: int, there: bool) -> None:
        """A block came or went."""
        # Behind what was said before: a chain's beginning is told before its end.
        self._blocks.pop(block, None)
        self._blocks[block] = there

    def session(self, session: int, tokens: int) -> None:
        """A session has so many tokens in the cache now."""
        self._sessions[session] = tokens

    def take(self) -> worker_link_pb2.CacheDigest | None:
        """The next piece; None if there is nothing to tell."""
        if not (self._full or self._blocks or self._sessions):
            return None
        blocks = list(islice(self._blocks.items(), MOST_BLOCKS))
        sessions = list(islice(self._sessions.items(), MOST_SESSIONS))
        # Anew, because a dict from whose front much was taken is slow to begin with.
        self._blocks = dict(islice(self._blocks.items(), MOST_BLOCKS, None))
        self._sessions = dict(islice(self._sessions.items(), MOST_SESSIONS, None))
        self._sequence += 1
        full, self._full = self._full, False
        return worker_link_pb2.CacheDigest(
            sequence=self._sequence,
            full=full,
            added=_packed([block for block, there in blocks if there]),
            removed=_packed([block for block, there in blocks if not there]),
            sessions=[worker_link_pb2.CachedSession(session=known, tokens=tokens) for known, tokens in sessions],
        )


class Digest:
    """A server's caches together, and the feeds of the routers that are attached."""

    def __init__(self) -> None:
        self._caches: list[CachedPrefixes] = []
        self._feeds: set[Feed] = set()

    def cache(self, capacity_tokens: int, block_tokens: int) -> CachedPrefixes:
        """The record of one engine's cache, told to all from now on."""
        cache = CachedPrefixes(capacity_tokens, block_tokens, self._block, self._session)
        self._caches.append(cache)
        return cache

    def forget(self, cache: CachedPrefixes) -> None:
        """An engine's cache is gone."""
        cache.clear()
        self._caches.remove(cache)

    def attach(self, feed: Feed) -> None:
        """A router asks: it is told everything, and then what changes. Asked again, everything anew."""
        feed.restart(
            (block for cache in self._caches for block in cache.blocks()),
            (known for cache in self._caches for known in cache.sessions()),
        )
        self._feeds.add(feed)

    def detach(self, feed: Feed) -> None:
        """It is gone."""
        self._feeds.discard(feed)

    def _block(self, block: int, there: bool) -> None:
        for feed in self._feeds:
            feed.block(block, there)

    def _session(self, session: int, tokens: int) -> None:
        for feed in self._feeds:
            feed.session(session, tokens)


def _packed(blocks: list[int]) -> bytes:
    return struct.pack(f"<{len(blocks)}Q", *blocks)
