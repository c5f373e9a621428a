"""What an engine has in its prefix cache, as far as can be told from outside: the blocks of prompts and of answers.

The engine drops what was used longest ago, the end of a chain before its beginning, and so is it done here, within the
tokens that its cache holds. Where it finds less of a prompt than is known here, it is right: what builds on what it has
lost is lost as well.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

from stoker_common.prefix import Prefix

# How far off a block's end may be, counted in bytes and not in tokens: template tokens are not spread evenly.
_OFF = 1 / 16
# How much the latest turn counts in a session's trust.
_WEIGHT = 0.5


class _Entry:
    """A block of a chain, or the end of a session's conversation, which lies behind its chain's last block."""

    __slots__ = ("children", "on", "parent", "session_tokens", "tokens", "trust")

    def __init__(self, parent: int, tokens: int) -> None:
        self.parent = parent
        # Its own, without what is before it.
        self.tokens = tokens
        self.children: set[int] = set()
        # The engine's last block that it lies in; 0 if that is not known.
        self.on = 0
        # Of a session: its whole conversation's; -1 for a block.
        self.session_tokens = -1
        # The share of its conversation that the engine found when the session came back.
        self.trust = 1.0


# Told of a block: whether it is there; of a session: its tokens, 0 when it is gone.
OnBlock = Callable[[int, bool], None]
OnSession = Callable[[int, int], None]


class CachedPrefixes:
    """One engine's. A few microseconds a block of each request; nothing is done for each token."""

    def __init__(self, capacity_tokens: int, block_tokens: int, on_block: OnBlock, on_session: OnSession) -> None:
        self._capacity_tokens = capacity_tokens
        self._block_tokens = block_tokens
        self._on_block = on_block
        self._on_session = on_session
        # By hash, the least recently used first, and each after all that build on it.
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._tokens = 0
        # What lies in a block of the engine's, by that block's key.
        self._upon: dict[int, set[int]] = {}

    @property
    def block_tokens(self) -> int:
        """Tokens of a block of the engine's."""
        return self._block_tokens

    @property
    def tokens(self) -> int:
        """Tokens of all that is known."""
        return self._tokens

    def blocks(self) -> Iterator[int]:
        """All blocks, the most recently used first, and each before those that build on it."""
        return (known for known, entry in reversed(self._entries.items()) if entry.session_tokens < 0)

    def sessions(self) -> Iterator[tuple[int, int]]:
        """All sessions and how many of their tokens will be found."""
        return ((known, self._told(each)) for known, each in self._entries.items() if each.session_tokens >= 0)

    def held(self, prefix: Prefix) -> int:
        """How many of the chain's blocks are there, from the first on."""
        for place, block in enumerate(prefix.hashes):
            if block not in self._entries:
                return place
        return len(prefix.hashes)

    def correct(self, prefix: Prefix, prompt_tokens: int, believed: int, cached_tokens: int, session: int) -> None:
        """The engine found `cached_tokens` of a prompt of which `believed` blocks were known when it was asked."""
        known = self._entries.get(session)
        if known is not None and known.session_tokens > 0:
            whole = self._whole(min(known.session_tokens, prompt_tokens))
            found = min(1.0, cached_tokens / whole) if whole else 1.0
            known.trust += _WEIGHT * (found - known.trust)
        limit = cached_tokens + max(self._block_tokens, int(_OFF * prompt_tokens))
        for place in range(believed):
            if prefix.tokens(place + 1, prompt_tokens) > limit:
                self._forget(prefix.hashes[place])
                return

    def add(self, prefix: Prefix, tokens: int, session: int, blocks: Sequence[int] = ()) -> None:
        """The engine has computed all of it, `tokens` tokens: prompt, or prompt and answer. `blocks`: the keys of its
        blocks in the engine (`token_chain`), where it says what leaves its cache."""
        hashes, entries = prefix.hashes, self._entries
        parent = at_tokens = 0
        for place, block in enumerate(hashes):
            end_tokens = prefix.tokens(place + 1, tokens)
            if block not in entries:
                self._enter(block, _Entry(parent, end_tokens - at_tokens), self._last(blocks, end_tokens))
                self._on_block(block, True)
            parent, at_tokens = block, end_tokens
        if session:
            self._left(session, parent, tokens - at_tokens, tokens, self._last(blocks, tokens))
        for block in reversed(hashes):
            entries.move_to_end(block)
        while self._tokens > self._capacity_tokens:
            self._drop(next(iter(entries)))

    def dropped(self, blocks: Iterable[int]) -> None:
        """Blocks of the engine's are gone, and so is what lay in them and all that builds on it."""
        for block in blocks:
            for known in self._upon.pop(block, ()):
                if known in self._entries:
                    self._forget(known)

    def clear(self) -> None:
        """The engine's cache is empty: it was put to sleep, or reset."""
        for known in list(self._entries):
            self._drop(known)

    def _left(self, session: int, parent: int, tokens: int, session_tokens: int, on: int) -> None:
        """The session's conversation ends here. Newer than all but the chain that it is the end of."""
        # At least a block, so that a flood of sessions is bounded by the cache as well.
        entry = _Entry(parent, max(tokens, self._block_tokens))
        entry.session_tokens = session_tokens
        known = self._entries.get(session)
        if known is not None:
            entry.trust = known.trust
            self._remove(session)
        self._enter(session, entry, on)
        self._on_session(session, self._told(entry))

    def _told(self, session: _Entry) -> int:
        """How many tokens of a session's next prompt will be found; 1 where it is less than a block, for it is here."""
        return max(1, self._whole(int(session.session_tokens * session.trust)))

    def _whole(self, tokens: int) -> int:
        """What of them is found again: whole blocks of the engine's, and not the last token, which nobody computed."""
        return max(0, tokens - 1) // self._block_tokens * self._block_tokens

    def _last(self, blocks: Sequence[int], tokens: int) -> int:
        """The last whole block of the engine's within so many tokens; 0 if there is none, or it is not known."""
        whole = min(tokens // self._block_tokens, len(blocks))
        return blocks[whole - 1] if whole else 0

    def _enter(self, known: int, entry: _Entry, on: int) -> None:
        if on:
            entry.on = on
            self._upon.setdefault(on, set()).add(known)
        self._entries[known] = entry
        self._tokens += entry.tokens
        if entry.parent:
            self._entries[entry.parent].children.add(known)

    def _remove(self, known: int) -> _Entry:
        entry = self._entries.pop(known)
        self._tokens -= entry.tokens
        if entry.on and (upon := self._upon.get(entry.on)) is not None:
            upon.discard(known)
            if not upon:
                del self._upon[entry.on]
        if entry.parent and entry.parent in self._entries:
            self._entries[entry.parent].children.discard(known)
        return entry

    def _drop(self, known: int) -> None:
        entry = self._remove(known)
        if entry.session_tokens < 0:
            self._on_block(known, False)
        else:
            self._on_session(known, 0)

    def _forget(self, known: int) -> None:
        """Drop it and all that builds on it."""
        waiting = [known]
        while waiting:
            block = waiting.pop()
            waiting += self._entries[block].children
            self._drop(block)
