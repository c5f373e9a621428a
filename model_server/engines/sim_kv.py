"""The simulator's KV cache: how many blocks are in use, and which whole blocks are known by their hash.

A block is private to a sequence until it is full and computed; then it is known by its hash and shared. One that nobody
uses any more stays, idle, until its place is needed: the one idle for longest goes first, as in vLLM.
"""

import struct
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b


def root_hash(cache_salt: str, adapter: str = "") -> bytes:
    """The hash that a chain of blocks begins with: chains of different salts or adapters share nothing."""
    root = blake2b(cache_salt.encode(), digest_size=16).digest()
    return blake2b(root + adapter.encode(), digest_size=16).digest() if adapter else root


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """A block's hash: of all tokens up to its end."""
    return blake2b(parent + struct.pack(f"<{len(token_ids)}i", *token_ids), digest_size=16).digest()


class KvCache:
    """Counts blocks. All methods but `match` and `reserve` expect what their callers hold."""

    __slots__ = ("_idle", "_private", "_users", "blocks")

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._private = 0
        self._users: dict[bytes, int] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self._private + len(self._users)

    @property
    def idle(self) -> int:
        """Blocks that nobody holds and whose content is known."""
        return len(self._idle)

    def match(self, hashes: Sequence[bytes]) -> int:
        """How many of these blocks, from the first on, are there."""
        for place, known in enumerate(hashes):
            if known not in self._users and known not in self._idle:
                return place
        return len(hashes)

    def share(self, hashes: Sequence[bytes]) -> None:
        """Hold known blocks."""
        for known in hashes:
            users = self._users.get(known, 0)
            if not users:
                del self._idle[known]
            self._users[known] = users + 1

    def reserve(self, count: int) -> bool:
        """Hold `count` more private blocks, in place of idle ones if need be; False if there is no room."""
        room = self.blocks - self._private - len(self._users)
        if room < count:
            return False
        for _ in range(count - (room - len(self._idle))):
            self._idle.popitem(last=False)
        self._private += count
        return True

    def commit(self, known: bytes) -> None:
        """One private block is full: it is known by its hash from now on. One of the same content is kept once."""
        self._private -= 1
        users = self._users.get(known, 0)
        if not users:
            self._idle.pop(known, None)
        self._users[known] = users + 1

    def release(self, hashes: Sequence[bytes], private: int) -> None:
        """Let go of known and private blocks. The last of a chain is forgotten before those it builds on."""
        self._private -= private
        for known in reversed(hashes):
            users = self._users[known] - 1
            if users:
                self._users[known] = users
            else:
                del self._users[known]
                self._idle[known] = None
