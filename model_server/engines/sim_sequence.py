"""A sequence as the scheduler sees it: its tokens, how many are computed, the blocks it holds."""

from enum import IntEnum

from model_server.engines.sim_kv import block_hash, root_hash


class Phase(IntEnum):
    """Where a sequence is."""

    NEW = 0
    WAITING = 1
    RUNNING = 2
    ENDED = 3


class Sequence:
    """One sequence. `blocks` of the KV cache are its own, the first `shared` of them known by `hashes`."""

    __slots__ = (
        "_block_tokens",
        "arrival",
        "blocks",
        "cached_tokens",
        "computed",
        "hashes",
        "phase",
        "priority",
        "reads_cache",
        "root",
        "shared",
        "tokens",
    )

    def __init__(
        self,
        prompt_token_ids: tuple[int, ...],
        block_tokens: int,
        *,
        priority: int = 0,
        cache_salt: str = "",
        adapter: str = "",
        reads_cache: bool = True,
    ) -> None:
        self.tokens = list(prompt_token_ids)
        self.priority = priority
        self.arrival = 0
        self.reads_cache = reads_cache
        self.root = root_hash(cache_salt, adapter)
        self.phase = Phase.NEW
        self.computed = 0
        self.blocks = 0
        self.shared = 0
        self.hashes: list[bytes] = []
        # Tokens found in the cache when it first ran; -1 before that.
        self.cached_tokens = -1
        self._block_tokens = block_tokens

    @property
    def rank(self) -> tuple[int, int]:
        """Who is served first: the lower priority, then the earlier arrival."""
        return self.priority, self.arrival

    def hash_blocks(self, count: int) -> None:
        """Make `hashes` cover the first `count` blocks, which must be full."""
        hashes = self.hashes
        size = self._block_tokens
        while len(hashes) < count:
            start = len(hashes) * size
            hashes.append(block_hash(hashes[-1] if hashes else self.root, self.tokens[start : start + size]))
