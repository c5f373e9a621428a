"""Which servers hold which blocks of prompts: one index over all of them, fed by what they announce over their links.

Each server has a bit, each block the bits of those that hold it. A chain's servers are found without looking at all of
its blocks: who holds a block holds all that are before it, so where its beginning and its end have the same servers,
nothing in between needs to be looked at.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from router.ledger import Key
from stoker.v1 import worker_link_pb2

# Blocks of a server that is gone, forgotten with each piece of news: its bit is free when all are.
_FORGOTTEN_AT_ONCE = 4096


class _Slot:
    """One server's bit, and what it holds."""

    __slots__ = ("bit", "blocks", "coming", "sequence", "sessions")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.blocks: set[int] = set()
        # Blocks that are being computed, and for how many requests.
        self.coming: dict[int, int] = {}
        self.sessions: set[int] = set()
        self.sequence = 0


class Expected:
    """Blocks that a request makes a server compute. `close` when they are there, or never will be."""

    __slots__ = ("_blocks", "_index", "_slot")

    def __init__(self, index: "PrefixIndex", slot: _Slot | None, blocks: Sequence[int]) -> None:
        self._index = index
        self._slot = slot
        self._blocks = blocks

    def close(self) -> None:
        """May be called any number of times."""
        if self._slot is not None:
            self._index.arrived(self._slot, self._blocks)
            self._slot = None


class Depths(Mapping[Key, int]):
    """How many blocks of one chain each server holds, those with most first. Valid until the next await.

    `levels`: depths, each with the bits of those that hold so much or more, deepest first.
    """

    __slots__ = ("_keys", "_levels", "_slots")

    def __init__(self, levels: Sequence[tuple[int, int]], slots: Mapping[Key, _Slot], keys: Mapping[int, Key]) -> None:
        self._levels = levels
        self._slots = slots
        self._keys = keys

    def __getitem__(self, key: Key) -> int:
        depth = self.get(key)
        if not depth:
            raise KeyError(key)
        return depth

    def get(self, key: Key, default: int = 0) -> int:  # type: ignore[override]
        """The depth at one server, 0 if it holds nothing."""
        slot, levels = self._slots.get(key), self._levels
        if slot is None:
            return default
        # Whoever is in one level is in all that are less deep.
        bit, low, high = slot.bit, 0, len(levels)
        while low < high:
            middle = (low + high) >> 1
            if levels[middle][1] & bit:
                high = middle
            else:
                low = middle + 1
        return levels[low][0] if low < len(levels) else default

    def __iter__(self) -> Iterator[Key]:
        told = 0
        for _, bits in self._levels:
            bits ^= told
            told |= bits
            while bits:
                bit = bits & -bits
                bits ^= bit
                yield self._keys[bit]

    def __len__(self) -> int:
        return self._levels[-1][1].bit_count() if self._levels else 0


class PrefixIndex:
    """The servers' digests. Belongs to one event loop."""

    def __init__(self) -> None:
        self._slots: dict[Key, _Slot] = {}
        self._keys: dict[int, Key] = {}
        self._alive = 0
        self._holders: dict[int, int] = {}
        self._coming: dict[int, int] = {}
        # Tokens of each session, by bit.
        self._sessions: dict[int, dict[int, int]] = {}
        # Servers that are gone and whose blocks are not all forgotten yet.
        self._gone: list[_Slot] = []

    def __contains__(self, key: Key) -> bool:
        return key in self._slots

    def blocks(self, key: Key) -> int:
        """How many blocks the server holds."""
        slot = self._slots.get(key)
        return len(slot.blocks) if slot is not None else 0

    def sessions(self, key: Key) -> int:
        """How many sessions it holds."""
        slot = self._slots.get(key)
        return len(slot.sessions) if slot is not None else 0

    def depths(self, chain: Sequence[int]) -> Depths:
        """Who holds how much of the chain."""
        levels = self._levels(chain) if chain else ()
        return Depths(levels, self._slots, self._keys)

    def session(self, session: int) -> dict[Key, int]:
        """Tokens of the session by server."""
        found = self._sessions.get(session)
        return {self._keys[bit]: tokens for bit, tokens in found.items() if bit & self._alive} if found else {}

    def expect(self, key: Key, chain: Sequence[int]) -> Expected:
        """A request is on its way to the server, which will compute what of the chain it does not hold."""
        slot = self._slots.get(key)
        if slot is None:
            return Expected(self, None, ())
        missing = len(chain)
        while missing and chain[missing - 1] not in slot.blocks:
            missing -= 1
        blocks = chain[missing:]
        for block in blocks:
            slot.coming[block] = slot.coming.get(block, 0) + 1
            self._coming[block] = self._coming.get(block, 0) | slot.bit
        return Expected(self, slot, blocks)

    def arrived(self, slot: _Slot, blocks: Iterable[int]) -> None:
        """For what was expected: it is over."""
        for block in blocks:
            left = slot.coming[block] - 1
            if left:
                slot.coming[block] = left
                continue
            del slot.coming[block]
            _clear(self._coming, block, slot.bit)

    def update(self, key: Key, digest: worker_link_pb2.CacheDigest) -> bool:
        """A server said what came and went. False if something it said before is missing: ask for all anew."""
        slot = self._slots.get(key)
        if digest.full:
            self.drop(key)
            slot = self._enter(key)
        elif slot is None or digest.sequence != slot.sequence + 1:
            self.drop(key)
            return False
        slot.sequence = digest.sequence
        self._add(slot, _unpacked(digest.added))
        self._take(slot, _unpacked(digest.removed))
        for each in digest.sessions:
            if each.tokens:
                slot.sessions.add(each.session)
                self._sessions.setdefault(each.session, {})[slot.bit] = each.tokens
            else:
                self._end(slot, each.session)
        self._forget()
        return True

    def drop(self, key: Key) -> None:
        """A server is gone, or begins anew: nothing it said counts any more. Takes no time, however much it was."""
        slot = self._slots.pop(key, None)
        if slot is not None:
            del self._keys[slot.bit]
            self._alive ^= slot.bit
            self._gone.append(slot)

    def keep(self, keys: Iterable[Key]) -> None:
        """Drop all servers but these."""
        for key in self._slots.keys() - set(keys):
            self.drop(key)

    def _levels(self, chain: Sequence[int]) -> list[tuple[int, int]]:
        """Depths with the bits of the servers that hold so much or more, deepest first."""
        holders, coming, at = self._holders, self._coming, self._alive
        levels: list[tuple[int, int]] = []
        depth = 0
        for block in chain:
            bits = holders.get(block, 0) & at
            if bits != at:
                bits |= coming.get(block, 0) & at
                if bits != at:
                    if depth:
                        levels.append((depth, at))
                    at = bits
                    if not at:
                        break
            depth += 1
        if at and depth:
            levels.append((depth, at))
        levels.reverse()
        return levels

    def _enter(self, key: Key) -> _Slot:
        bit, taken = 1, self._alive | sum(slot.bit for slot in self._gone)
        while taken & bit:
            bit <<= 1
        slot = self._slots[key] = _Slot(bit)
        self._keys[bit] = key
        self._alive |= bit
        return slot

    def _add(self, slot: _Slot, blocks: Iterable[int]) -> None:
        holders, bit, held = self._holders, slot.bit, slot.blocks
        for block in blocks:
            held.add(block)
            holders[block] = holders.get(block, 0) | bit

    def _take(self, slot: _Slot, blocks: Iterable[int]) -> None:
        for block in blocks:
            if block in slot.blocks:
                slot.blocks.discard(block)
                _clear(self._holders, block, slot.bit)

    def _end(self, slot: _Slot, session: int) -> None:
        if session in slot.sessions:
            slot.sessions.discard(session)
            places = self._sessions[session]
            del places[slot.bit]
            if not places:
                del self._sessions[session]

    def _forget(self) -> None:
        """A part of what servers held that are gone."""
        left = _FORGOTTEN_AT_ONCE
        for slot in list(self._gone):
            blocks = list(islice(slot.blocks, left))
            self._take(slot, blocks)
            sessions = list(islice(slot.sessions, left - len(blocks)))
            for session in sessions:
                self._end(slot, session)
            left -= len(blocks) + len(sessions)
            if not (slot.blocks or slot.sessions or slot.coming):
                self._gone.remove(slot)


def _clear(bits: dict[int, int], block: int, bit: int) -> None:
    rest = bits[block] & ~bit
    if rest:
        bits[block] = rest
    else:
        del bits[block]


def _unpacked(blocks: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(blocks) // 8}Q", blocks[: len(blocks) // 8 * 8])
