"""A sequence of tokens as the engine's prefix cache knows it: a key for each whole block, of all tokens up to its end.

For use within one process alone: how an engine names its blocks itself is its own affair.
"""

from collections.abc import Sequence


def root(adapter: str, cache_salt: str) -> int:
    """The key that a chain begins with: chains of different adapters or salts share nothing."""
    return hash((adapter, cache_salt))


def step(parent: int, token_ids: Sequence[int]) -> int:
    """The key of the block with these tokens, behind the one with the key `parent`."""
    return hash((parent, tuple(token_ids)))


def chain(root_key: int, token_ids: Sequence[int], block_tokens: int) -> list[int]:
    """The keys of all whole blocks. A few us for 32 tokens."""
    keys = []
    for start in range(0, len(token_ids) - block_tokens + 1, block_tokens):
        root_key = step(root_key, token_ids[start : start + block_tokens])
        keys.append(root_key)
    return keys
