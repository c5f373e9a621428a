"""What one router process knows of the servers' caches: the router's own index, told as servers' links tell it."""

import struct
from collections.abc import Iterable, Mapping, Sequence

from bench.routing.job import BLOCK_TOKENS
from router.ledger import Key
from router.prefix_index import Expected, PrefixIndex
from stoker.v1.worker_link_pb2 import CacheDigest


class Digests:
    """Tells an index what servers announce, and it what is held. `keys`: the servers that are there from the start."""

    def __init__(self, index: PrefixIndex, keys: Iterable[Key]) -> None:
        self._index = index
        # The number of each one's last digest.
        self._told = dict.fromkeys(keys, 0)
        for key in self._told:
            index.update(key, CacheDigest(full=True))

    def announced(self, key: Key, news: Mapping[int, bool]) -> None:
        """A server said which blocks came (True) and went."""
        self._told[key] += 1
        added = [block for block, here in news.items() if here]
        removed = [block for block, here in news.items() if not here]
        self._index.update(key, CacheDigest(sequence=self._told[key], added=_packed(added), removed=_packed(removed)))

    def expect(self, key: Key, chain: Sequence[int]) -> Expected:
        """A request is on its way there, which will compute the chain."""
        return self._index.expect(key, chain)

    def held(self, chain: Sequence[int]) -> dict[Key, int]:
        """Tokens of the chain by server, those with most first."""
        return {key: blocks * BLOCK_TOKENS for key, blocks in self._index.depths(chain).items()}


def _packed(blocks: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(blocks)}Q", *blocks)
