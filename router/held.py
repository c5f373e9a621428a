"""What is known of a request's prompt in servers' caches, as one mapping that a pick reads: tokens by server."""

from collections.abc import Iterator, Mapping
from itertools import chain

from router.ledger import Key
from router.prefix_index import Depths
from stoker_common.prefix import Prefix

# How far blocks, which are counted in bytes, may be off a session's tokens, which the engine counted, and say the same.
_OFF = 1 / 8


class Held(Mapping[Key, int]):
    """Tokens of a prompt in each server's cache, those with most first: its blocks there, or its session's, unless
    there are clearly more blocks: then somebody else has said the same there.

    Worked out for those that are asked for only: a prompt that begins as all do is held by the whole fleet.
    """

    __slots__ = ("_depths", "_known", "_prefix", "_prompt_tokens", "_session")

    def __init__(self, depths: Depths, prefix: Prefix, prompt_tokens: int, session: Mapping[Key, int]) -> None:
        self._depths = depths
        self._prefix = prefix
        self._prompt_tokens = prompt_tokens
        self._session = session
        self._known: dict[Key, int] = {}

    def __getitem__(self, key: Key) -> int:
        tokens = self.get(key)
        if not tokens:
            raise KeyError(key)
        return tokens

    def get(self, key: Key, default: int = 0) -> int:  # type: ignore[override]
        """The tokens at one server, 0 if it holds nothing."""
        tokens = self._known.get(key)
        if tokens is None:
            blocks = self._depths.get(key)
            tokens = self._prefix.tokens(blocks, self._prompt_tokens) if blocks else 0
            if self._session and tokens <= (session := self._session.get(key, 0)) * (1 + _OFF):
                tokens = session
            self._known[key] = tokens
        return tokens or default

    def __iter__(self) -> Iterator[Key]:
        return chain(self._session, (key for key in self._depths if key not in self._session))

    def __len__(self) -> int:
        return sum(1 for _ in self)
