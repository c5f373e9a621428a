"""What leaves vLLM's prefix cache, by its own word: its KV events, followed from step to step.

The events name blocks by vLLM's hashes. What a hash stands for is told when the block is stored: its tokens and the
block before it. So each gets the key that `token_chain` gives the same tokens, and what is removed is told by that.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from model_server import token_chain
from model_server.engines.vllm_lora_name import served_name

# Read in one go, lest a long absence hold up the loop; the rest comes with the next step.
_MOST_BATCHES = 64


class Subscriber(Protocol):
    """Reads what an engine tells, whenever it is asked; never waits."""

    def take(self) -> tuple[int, list[Any]] | None:
        """The next batch, its number counting up from 0, and its events; None if there is none yet."""

    def close(self) -> None:
        """Idempotent."""


class BlockChains:
    """The blocks in the cache by vLLM's hashes, and the keys of those that left since `take`. Pure."""

    def __init__(self) -> None:
        self._keys: dict[Any, int] = {}
        self._dropped: list[int] = []

    def __len__(self) -> int:
        return len(self._keys)

    def take(self) -> list[int]:
        """What has left since the last time."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def stored(
        self, hashes: Iterable[Any], parent: Any, token_ids: list[int], block_tokens: int, adapter: str, salt: str
    ) -> None:
        """Blocks were stored, one behind the other, behind `parent` (None: they begin a sequence)."""
        key = token_chain.root(adapter, salt) if parent is None else self._keys.get(parent)
        if key is None:
            return  # stored before we listened: nobody here believes in it
        for place, known in enumerate(hashes):
            key = token_chain.step(key, token_ids[place * block_tokens : (place + 1) * block_tokens])
            self._keys[known] = key

    def removed(self, hashes: Iterable[Any]) -> None:
        """Blocks were given to others."""
        self._dropped += [key for known in hashes if (key := self._keys.pop(known, None)) is not None]

    def cleared(self) -> None:
        """Nothing is left; or nobody knows what is."""
        self._dropped += self._keys.values()
        self._keys.clear()


class KvEvents:
    """Listens to one engine. Belongs to its event loop; `close` it when the engine has ended.

    `subscribe` makes a subscriber to an endpoint, before the engine tells anything there.
    """

    def __init__(self, subscribe: Callable[[str], Subscriber]) -> None:
        # Events have prompts' tokens: the socket is in a folder of ours alone.
        self._folder = Path(tempfile.mkdtemp(prefix="stoker-kv-"))
        self.endpoint = f"ipc://{self._folder}/events"
        self._subscriber = subscribe(self.endpoint)
        self._chains = BlockChains()
        self._next = 0

    def dropped(self) -> list[int]:
        """The keys of the blocks that left since the last time, as far as vLLM has told by now."""
        for _ in range(_MOST_BATCHES):
            batch = self._subscriber.take()
            if batch is None:
                break
            number, events = batch
            if number != self._next:
                self._chains.cleared()  # some are lost
            self._next = number + 1
            for event in events:
                self._take(event)
        return self._chains.take()

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._subscriber.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _take(self, event: Any) -> None:
        match type(event).__name__:
            case "BlockStored":
                adapter = served_name(event.lora_name)
                first = (getattr(event, "extra_keys", None) or [None])[0] or ()
                salts = [key for key in first if isinstance(key, str)][bool(adapter) :]
                salt = salts[-1] if salts else ""
                self._chains.stored(
                    event.block_hashes, event.parent_block_hash, event.token_ids, event.block_size, adapter, salt
                )
            case "BlockRemoved":
                self._chains.removed(event.block_hashes)
            case _:
                self._chains.cleared()
