"""What cached prefixes cost a router: hashing prompts, and picks among servers that hold parts of them.

`python -m bench.prefix` prints microseconds, the best of many: the least that a busy machine lets through.
"""

import random
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from discovery.catalog import CatalogEntry, CatalogState, CatalogView, ZoneView
from discovery.endpoint import Endpoint, ModelState, Residency
from router.caches import Caches
from router.ejection import Breakers, EjectionRules
from router.ledger import Account, Key
from router.policy import Conditions, Policy
from router.request import Request
from router.scorers import Rates
from router.sessions import Sessions
from router.snapshot import Snapshot, build
from stoker.v1 import generation_pb2, worker_link_pb2
from stoker_common import prefix

MODEL = "m"
WORDS = "the boilers are hot and the lamps are lit; "


def best_us(call: Callable[[], object], times: int = 300) -> float:
    """The quickest of so many calls."""
    quickest = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        call()
        quickest = min(quickest, time.perf_counter() - began)
    return quickest * 1e6


def text(tokens: int) -> generation_pb2.Generation:
    """A prompt of about so many tokens, at four bytes a token."""
    return generation_pb2.Generation(model=MODEL, text=(WORDS * (tokens // 10))[: 4 * tokens])


def ids(tokens: int) -> generation_pb2.Generation:
    """So many token ids."""
    return generation_pb2.Generation(
        model=MODEL, token_ids=generation_pb2.TokenIds(ids=[place * 7919 % 128_000 for place in range(tokens)])
    )


def chat(tokens: int) -> generation_pb2.Generation:
    """A conversation of about so many tokens in turns of 400."""
    said = (WORDS * 40)[:1600]
    messages = [
        generation_pb2.ChatMessage(
            role="assistant" if turn % 2 else "user", content=[generation_pb2.ContentPart(text=said)]
        )
        for turn in range(tokens // 400)
    ]
    return generation_pb2.Generation(model=MODEL, chat=generation_pb2.Chat(messages=messages))


def fleet(servers: int) -> Snapshot:
    """So many servers of one zone."""
    endpoints = [
        Endpoint(
            server=f"a-{place}",
            address=f"a-{place}:1",
            zone="a",
            epoch="e",
            engine="sim",
            models=(ModelState(MODEL, Residency.HOT, 200_000),),
            max_streams=64,
        )
        for place in range(servers)
    ]
    entries = {each.server: CatalogEntry(each, CatalogState.PASSING) for each in endpoints}
    return build(CatalogView(MappingProxyType({"a": ZoneView("a", MappingProxyType(entries), 0.0)})), frozenset())


class Bench:
    """A router's view of a fleet in which every server holds another part of one prompt."""

    def __init__(self, servers: int, tokens: int) -> None:
        self._rng = random.Random(1)
        self._snapshot = fleet(servers)
        self._policy = Policy("a", Rates(prefill_tokens_per_second=20_000.0))
        self._breakers = Breakers(EjectionRules(), time.monotonic, self._rng)
        self._accounts: Mapping[Key, Account] = {
            key: Account(own_streams=place % 7, own_prompt_tokens=place * 37 % 1000)
            for place, key in enumerate(self._snapshot.members)
        }
        chain = prefix.of(text(tokens), MODEL)
        self._request = Request("r", MODEL, tokens, 200, prefix.session_hash(MODEL, "", "s"), prefix=chain)
        self._caches = Caches(Sessions(1000))
        for key in self._snapshot.members:
            blocks = chain.hashes[: self._rng.randrange(len(chain.hashes) + 1)]
            added = struct.pack(f"<{len(blocks)}Q", *blocks)
            self._caches.announced(key, worker_link_pb2.CacheDigest(sequence=1, full=True, added=added))

    def pick(self) -> None:
        """One pick, from what is cached to the choice."""
        session = self._caches.session(self._request)
        held = self._caches.held(self._request, session)
        conditions = Conditions(self._accounts, self._breakers, held, {}, time.monotonic(), session=session)
        if self._policy.choose(self._request, self._snapshot, (), conditions, self._rng) is None:
            raise RuntimeError("nobody was picked")

    def pick_cold(self) -> None:
        """The same for a prompt that nobody holds anything of."""
        known, self._request = self._request, replace(self._request, prefix=prefix.NONE)
        self.pick()
        self._request = known


def main() -> None:
    """Print the table."""
    for tokens in (1_000, 10_000, 100_000):
        for make in (text, chat, ids):
            generation = make(tokens)
            blocks = len(prefix.of(generation, MODEL).hashes)
            took_us = best_us(lambda generation=generation: prefix.of(generation, MODEL))  # type: ignore[misc]
            print(f"hash {make.__name__:5} {tokens:7} tokens {took_us:8.0f} us, {blocks} blocks")
    for servers in (1, 8, 64, 512):
        for tokens in (4_000, 100_000):
            bench = Bench(servers, tokens)
            warm_us, cold_us = best_us(bench.pick, 1000), best_us(bench.pick_cold, 1000)
            print(f"pick {servers:4} servers {tokens:7} tokens {warm_us:6.0f} us, {cold_us:4.0f} us cold")


if __name__ == "__main__":
    main()
