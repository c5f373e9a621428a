"""A simulated server's KV cache: tokens that streams hold, and whole blocks that stay for prompts that begin alike.

What is held and not known by a chain is counted in tokens. Whole blocks of prompts are shared; one that nobody holds
stays, idle, until its place is needed: the one idle for longest goes first, and of one chain the last, as in vLLM.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class Kv:
    """One cache of `capacity` tokens, in blocks of `block` tokens."""

    __slots__ = ("_idle", "_users", "block", "capacity", "evictions", "news", "private")

    def __init__(self, capacity: int, block: int) -> None:
        self.capacity = capacity
        self.block = block
        self.private = 0
        self.evictions = 0
        # Blocks that came and went since the last digest: True for those that are here.
        self.news: dict[int, bool] = {}
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Tokens that streams hold."""
        return self.private + len(self._users) * self.block

    @property
    def usage(self) -> float:
        """Their share of the cache."""
        return self.used / self.capacity

    def reserve(self, tokens: int) -> bool:
        """Hold so many tokens more, in place of idle blocks if need be; False, if there is no room."""
        idle = self._idle
        over = self.used + len(idle) * self.block + tokens - self.capacity
        if over > len(idle) * self.block:
            return False
        while over > 0:
            block, _ = idle.popitem(last=False)
            self.news[block] = False
            self.evictions += 1
            over -= self.block
        self.private += tokens
        return True

    def match(self, chain: Sequence[int]) -> int:
        """How many blocks of the chain are there, from its beginning on."""
        users, idle = self._users, self._idle
        for place, block in enumerate(chain):
            if block not in users and block not in idle:
                return place
        return len(chain)

    def share(self, chain: Iterable[int]) -> None:
        """Hold blocks that are there."""
        users, idle = self._users, self._idle
        for block in chain:
            held = users.get(block, 0)
            if not held:
                del idle[block]
            users[block] = held + 1

    def commit(self, chain: Iterable[int]) -> None:
        """So many blocks, held as tokens so far, are whole: they are known from now on. Equal ones are kept once."""
        users = self._users
        for block in chain:
            self.private -= self.block
            held = users.get(block, 0)
            if not held and self._idle.pop(block, False) is False:
                self.news[block] = True
            users[block] = held + 1

    def release(self, chain: Sequence[int], tokens: int) -> None:
        """Let go of known blocks and of tokens."""
        users, idle = self._users, self._idle
        self.private -= tokens
        for block in reversed(chain):
            held = users[block] - 1
            if held:
                users[block] = held
            else:
                del users[block]
                idle[block] = None
