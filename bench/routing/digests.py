"""What one router process knows of the servers' caches: what they announced, and what its own requests bring."""

from collections import Counter
from collections.abc import Mapping, Sequence

from bench.routing.job import BLOCK_TOKENS
from router.ledger import Key


class Digests:
    """Blocks by server."""

    def __init__(self) -> None:
        self._known: dict[Key, set[int]] = {}
        self._coming: dict[Key, Counter[int]] = {}

    def announced(self, key: Key, news: Mapping[int, bool]) -> None:
        """A server said which blocks came (True) and went."""
        known = self._known.setdefault(key, set())
        for block, here in news.items():
            if here:
                known.add(block)
            else:
                known.discard(block)

    def expect(self, key: Key, chain: Sequence[int]) -> None:
        """A request is on its way there, which will compute the chain."""
        self._coming.setdefault(key, Counter()).update(chain)

    def arrived(self, key: Key, chain: Sequence[int]) -> None:
        """It is computed, or never will be."""
        coming = self._coming[key]
        for block in chain:
            coming[block] -= 1
            if not coming[block]:
                del coming[block]

    def held(self, chain: Sequence[int]) -> dict[Key, int]:
        """Tokens of the chain by server."""
        found = {}
        for key in self._known.keys() | self._coming.keys():
            known, coming = self._known.get(key, ()), self._coming.get(key, ())
            blocks = 0
            for block in chain:
                if block not in known and block not in coming:
                    break
                blocks += 1
            if blocks:
                found[key] = blocks * BLOCK_TOKENS
        return found
