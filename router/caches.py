"""What servers' caches hold of each request: what they announce over their links, and what the router remembers itself.

No request is pinned anywhere. What of its prompt lies in a server's cache need not be computed there; the prefill term
says how much that saves, and a long queue there may still cost more.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from router.held import Held
from router.ledger import Key
from router.prefix_index import Expected, PrefixIndex
from router.request import Request
from router.sessions import Sessions
from stoker.v1 import worker_link_pb2

NOTHING: Mapping[Key, int] = MappingProxyType({})


class Caches:
    """The servers' digests, and the router's memory of sessions where a server announces nothing."""

    def __init__(self, sessions: Sessions) -> None:
        self.index = PrefixIndex()
        self._remembered = sessions

    def session(self, request: Request) -> Mapping[Key, int]:
        """Tokens of the request's session by server."""
        if not request.session:
            return NOTHING
        remembered = self._remembered.held(request.session)
        known = {key: tokens for key, tokens in remembered.items() if key not in self.index}
        return known | self.index.session(request.session)

    def held(self, request: Request, session: Mapping[Key, int]) -> Mapping[Key, int]:
        """Tokens of the request's prompt by server; `session` are its session's. Read it before the next await."""
        if not request.reads_cache:
            return NOTHING
        depths = self.index.depths(request.prefix.hashes)
        return Held(depths, request.prefix, request.prompt_tokens - request.resumed_tokens, session)

    def expect(self, key: Key, request: Request) -> Expected:
        """The request is on its way to a server. Close it at its first token, or when it has failed."""
        return self.index.expect(key, request.prefix.hashes)

    def found(self, key: Key, request: Request, cached_tokens: int) -> None:
        """A server began on the request and had so much of it cached."""
        self._remembered.correct(request.session, key, cached_tokens)

    def left(self, key: Key, request: Request, tokens: int) -> None:
        """The request's conversation of `tokens` is now in the server's cache."""
        self._remembered.left(request.session, key, tokens)

    def announced(self, key: Key, digest: worker_link_pb2.CacheDigest) -> bool:
        """A server said what came and went. False if something it said before was missed."""
        return self.index.update(key, digest)

    def silent(self, key: Key) -> None:
        """A server can announce nothing any more: what it said is no longer true for long."""
        self.index.drop(key)

    def keep(self, keys: Iterable[Key]) -> None:
        """Forget all servers but these."""
        self.index.keep(keys)
