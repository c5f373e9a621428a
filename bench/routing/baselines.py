"""The rules of other routers, as ANCHORS.md and their sources give them."""

import hashlib
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import count

from bench.routing.baseline import Caches, Rule, Seen
from bench.routing.job import BLOCK_TOKENS, Job


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._turns = count()

    def choose(self, job: Job, servers: Sequence[str], seen: Seen) -> str:
        """The next."""
        return servers[next(self._turns) % len(servers)]


class LeastOutstanding:
    """The one with the fewest requests of ours in flight; at random among equals."""

    def choose(self, job: Job, servers: Sequence[str], seen: Seen) -> str:
        """The least loaded."""
        return _least(servers, seen)


class SessionRing:
    """A consistent hash of the session, or of the prompt's beginning, blind to load. 100 points a server."""

    def __init__(self) -> None:
        self._points: list[tuple[int, str]] = []
        self._known: frozenset[str] = frozenset()

    def choose(self, job: Job, servers: Sequence[str], seen: Seen) -> str:
        """The first point after the session's."""
        if self._known != frozenset(servers):
            self._known = frozenset(servers)
            self._points = sorted((_hash(f"{server}#{i}"), server) for server in servers for i in range(100))
        key = job.session or str(job.chain[:1] or job.number)
        return self._points[bisect(self._points, (_hash(key), "")) % len(self._points)][1]


class CacheAware:
    """smg's: the holder of the longest prefix, by a tree of what was sent where, unless the load is uneven.

    Constants are smg's defaults. Its tree is a router's own guess: it hears of no eviction.
    """

    match_share, over_mean, beyond_mean = 0.3, 1.5, 64

    def __init__(self) -> None:
        self._holders: dict[int, set[str]] = {}

    def choose(self, job: Job, servers: Sequence[str], seen: Seen) -> str:
        """Cache first, load where that is too uneven or nothing matches."""
        loads = [seen.streams[server] for server in servers]
        mean = sum(loads) / len(loads)
        matched, holders = self._longest(job, servers)
        server = _least(servers, seen)
        if matched * BLOCK_TOKENS > self.match_share * job.prompt_tokens:
            holder = _least(holders, seen)
            load = seen.streams[holder]
            if not (load > self.over_mean * mean and load > mean + self.beyond_mean):
                server = holder
        for block in job.chain:
            self._holders.setdefault(block, set()).add(server)
        return server

    def _longest(self, job: Job, servers: Sequence[str]) -> tuple[int, list[str]]:
        """Blocks matched, and who holds all of them."""
        matched, holders = 0, list(servers)
        for place, block in enumerate(job.chain):
            known = self._holders.get(block)
            still = [server for server in holders if known and server in known]
            if not still:
                break
            matched, holders = place + 1, still
        return matched, holders


class Dynamo:
    """NVIDIA Dynamo's cost: prompt blocks to be computed there, this request's among them, and blocks in use.

    Its indexer hears the servers' KV events: it knows their caches as they are.
    """

    block_tokens = 16

    def __init__(self, caches: Caches) -> None:
        self._caches = caches

    def choose(self, job: Job, servers: Sequence[str], seen: Seen) -> str:
        """The cheapest, at random among equals (temperature 0)."""

        def cost(server: str) -> float:
            prefill = seen.prefill_tokens[server] + job.prompt_tokens - self._caches.cached(server, job)
            decode = seen.held_tokens[server] + job.prompt_tokens
            return prefill / self.block_tokens + decode / self.block_tokens

        return _best(servers, cost, seen)


class LlmD:
    """llm-d's default weights: queue 2, KV utilisation 2, prefix 3, each within [0, 1], the highest sum.

    Loads are those last reported; the prefix index is what was sent where, bounded by each server's size.
    """

    def __init__(self) -> None:
        self._sent: dict[str, dict[int, None]] = {}
        self._most = 31_250 * 64 // (BLOCK_TOKENS * 4)  # its default: 31,250 blocks of 64 characters a server

    def choose(self, job: Job, servers: Sequence[str], seen: Seen) -> str:
        """The highest score."""
        queues = {server: seen.load[server].waiting if server in seen.load else 0 for server in servers}
        low, high = min(queues.values()), max(queues.values())

        def cost(server: str) -> float:
            queue = 1.0 if high == low else (high - queues[server]) / (high - low)
            free = 1.0 - (seen.load[server].kv_usage if server in seen.load else 0.0)
            return -(2.0 * queue + 2.0 * free + 3.0 * self._matched(job, server))

        server = _best(servers, cost, seen)
        sent = self._sent.setdefault(server, {})
        for block in job.chain:
            sent.pop(block, None)
            sent[block] = None
        while len(sent) > self._most:
            del sent[next(iter(sent))]
        return server

    def _matched(self, job: Job, server: str) -> float:
        sent = self._sent.get(server, {})
        for place, block in enumerate(job.chain):
            if block not in sent:
                return place / len(job.chain)
        return 1.0 if job.chain else 0.0


BASELINES: dict[str, Callable[[Caches], Rule]] = {
    "round-robin": lambda _: RoundRobin(),
    "least-outstanding": lambda _: LeastOutstanding(),
    "session-ring": lambda _: SessionRing(),
    "cache-aware": lambda _: CacheAware(),
    "dynamo": Dynamo,
    "llm-d": lambda _: LlmD(),
}


def _least(servers: Sequence[str], seen: Seen) -> str:
    return _best(servers, lambda server: seen.streams[server], seen)


def _best(servers: Sequence[str], cost: Callable[[str], float], seen: Seen) -> str:
    costs = [cost(server) for server in servers]
    low = min(costs)
    return seen.rng.choice([server for server, each in zip(servers, costs, strict=True) if each <= low])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
