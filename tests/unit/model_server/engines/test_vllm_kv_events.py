"""What vLLM's KV events are made into: keys of blocks by their tokens."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from model_server import token_chain
from model_server.engines.vllm_kv_events import BlockChains, KvEvents

BLOCK = 4


def keys(ids: range, adapter: str = "", salt: str = "") -> list[int]:
    return token_chain.chain(token_chain.root(adapter, salt), ids, BLOCK)


def stored(chains: BlockChains, hashes: list[bytes], parent: bytes | None, ids: range, **about: str) -> None:
    chains.stored(hashes, parent, list(ids), BLOCK, about.get("adapter", ""), about.get("salt", ""))


def test_what_leaves_is_told_by_all_tokens_up_to_its_end_and_once() -> None:
    chains = BlockChains()
    stored(chains, [b"a", b"b"], None, range(8))
    stored(chains, [b"c"], b"b", range(8, 12))
    chains.removed([b"c", b"b"])
    assert chains.take() == [keys(range(12))[2], keys(range(12))[1]]
    assert chains.take() == []
    chains.removed([b"c"])
    assert chains.take() == []
    assert len(chains) == 1


@pytest.mark.parametrize("about", [{"salt": "tenant"}, {"adapter": "lora"}])
def test_salts_and_adapters_are_apart(about: dict[str, str]) -> None:
    chains = BlockChains()
    stored(chains, [b"a"], None, range(4), **about)
    chains.removed([b"a"])
    (key,) = chains.take()
    assert [key] == keys(range(4), **about) != keys(range(4))


def test_what_builds_on_a_block_from_before_we_listened_is_nobodys() -> None:
    chains = BlockChains()
    stored(chains, [b"b"], b"a", range(4, 8))
    chains.removed([b"b", b"a"])
    assert chains.take() == []


def test_an_emptied_cache_has_lost_all() -> None:
    chains = BlockChains()
    stored(chains, [b"a", b"b"], None, range(8))
    chains.cleared()
    assert sorted(chains.take()) == sorted(keys(range(8)))
    assert len(chains) == 0


# Named and shaped as vLLM's own.
@dataclass
class BlockStored:
    block_hashes: list[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]
    block_size: int = BLOCK
    lora_name: str | None = None
    extra_keys: list[tuple[Any, ...] | None] | None = None


@dataclass
class BlockRemoved:
    block_hashes: list[bytes]


@dataclass
class AllBlocksCleared:
    pass


@dataclass
class Told:
    """A subscriber that has been told so much."""

    endpoint: str = ""
    batches: deque[tuple[int, list[Any]]] = field(default_factory=deque)
    closed: bool = False

    def take(self) -> tuple[int, list[Any]] | None:
        return self.batches.popleft() if self.batches else None

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def events(told: Told) -> KvEvents:
    def subscribe(endpoint: str) -> Told:
        told.endpoint = endpoint
        return told

    return KvEvents(subscribe)


def test_batches_are_read_until_there_is_none(told: Told, events: KvEvents) -> None:
    told.batches += [(0, [BlockStored([b"a", b"b"], None, list(range(8)))]), (1, [BlockRemoved([b"b"])])]
    assert events.dropped() == keys(range(8))[1:]
    assert events.dropped() == []
    told.batches.append((2, [AllBlocksCleared()]))
    assert events.dropped() == keys(range(8))[:1]


def test_after_lost_batches_nothing_from_before_is_believed(told: Told, events: KvEvents) -> None:
    told.batches += [(0, [BlockStored([b"a"], None, list(range(4)))]), (2, [BlockStored([b"c"], None, [9, 9, 9, 9])])]
    assert events.dropped() == keys(range(4))
    told.batches.append((3, [BlockRemoved([b"a", b"c"])]))
    assert len(events.dropped()) == 1


def test_salt_and_adapter_are_told_with_the_first_block(told: Told, events: KvEvents) -> None:
    stored = [
        BlockStored([b"a"], None, list(range(4)), extra_keys=[("tenant",)]),
        BlockStored([b"b"], None, list(range(4)), lora_name="lora 1-2", extra_keys=[("lora 1-2", "tenant")]),
        BlockStored([b"c"], None, list(range(4)), lora_name="lora 1-2", extra_keys=[("lora 1-2",)]),
    ]
    told.batches.append((0, [*stored, BlockRemoved([b"a", b"b", b"c"])]))
    about = [{"salt": "tenant"}, {"adapter": "lora", "salt": "tenant"}, {"adapter": "lora"}]
    assert events.dropped() == [key for each in about for key in keys(range(4), **each)]


def test_events_have_prompts_so_nobody_else_may_read_them_and_nothing_stays(told: Told, events: KvEvents) -> None:
    folder = Path(told.endpoint.removeprefix("ipc://")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    events.close()
    events.close()
    assert told.closed and not folder.exists()
