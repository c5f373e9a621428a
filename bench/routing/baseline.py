"""A baseline's router process: it sends each request at once to the server that its rule says, and knows no more."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.routing.job import Flight, Job
from bench.routing.mesh import Mesh
from discovery.endpoint import Load


@dataclass(slots=True)
class Seen:
    """What one router process sees. Counts are its own, as the baselines' are; `load` is what servers last reported."""

    rng: random.Random
    # Own requests in flight, own prompt tokens not computed yet, own tokens in caches: by server.
    streams: Counter[str] = field(default_factory=Counter)
    prefill_tokens: Counter[str] = field(default_factory=Counter)
    held_tokens: Counter[str] = field(default_factory=Counter)
    load: dict[str, Load] = field(default_factory=dict)


class Rule(Protocol):
    """One baseline."""

    def choose(self, job: Job, servers: Sequence[str], seen: Seen) -> str:
        """One of the servers, which are never none."""


class Caches(Protocol):
    """What is in the servers' caches, as their events would tell."""

    def cached(self, server: str, job: Job) -> int:
        """Tokens of the job's prompt that the server has."""


class BaselineProcess:
    """One process with a rule of its own."""

    def __init__(self, mesh: Mesh, rule: Rule) -> None:
        self._mesh = mesh
        self._rule = rule
        self.seen = Seen(random.Random(mesh.rng.random()))
        self._computing: dict[int, int] = {}
        self._down: set[str] = set()

    def submit(self, flight: Flight) -> None:
        """A request came: choose among servers that have its model hot."""
        model, servers = flight.job.model, self._mesh.servers
        able = [name for name, server in servers.items() if name not in self._down and model in server.spec.models]
        hot = [name for name in able if servers[name].is_hot(model)]
        server = self._rule.choose(flight.job, hot or able, self.seen)
        tokens = max(1, flight.job.prompt_tokens - servers[server].engine(model).cached(flight.job.chain))
        self._computing[flight.job.number] = tokens
        self.seen.streams[server] += 1
        self.seen.prefill_tokens[server] += tokens
        self.seen.held_tokens[server] += flight.job.prompt_tokens
        self._mesh.dispatch(flight, server)

    def first(self, flight: Flight) -> None:
        """Its first token came."""
        self.seen.prefill_tokens[flight.server] -= self._computing.pop(flight.job.number, 0)

    def ended(self, flight: Flight) -> None:
        """Its last token came."""
        self._left(flight, flight.server)

    def failed(self, flight: Flight, server: str) -> None:
        """Its server was lost, which every baseline is told as soon as Stoker's router notices."""
        self._down.add(server)
        self.seen.prefill_tokens[server] -= self._computing.pop(flight.job.number, 0)
        self._left(flight, server)

    def outbid(self, flight: Flight, server: str, load: Load) -> None:
        """No baseline asks for that."""
        raise NotImplementedError

    def reported(self, server: str, load: Load, digest: Mapping[int, bool]) -> None:
        """A server reported its load."""
        self.seen.load[server] = load

    def changed(self) -> None:
        """Who is gone is gone."""
        self._down.update(name for name, server in self._mesh.servers.items() if not server.alive)

    def _left(self, flight: Flight, server: str) -> None:
        self.seen.streams[server] -= 1
        self.seen.held_tokens[server] -= flight.job.prompt_tokens


@dataclass(frozen=True, slots=True)
class TrueCaches:
    """The servers' caches themselves: events without delay or loss."""

    mesh: Mesh

    def cached(self, server: str, job: Job) -> int:
        """Tokens of the job's prompt that the server has."""
        return self.mesh.servers[server].engine(job.model).cached(job.chain)
