"""One run: a workload's requests arrive at routers, which send them to servers, until all have ended."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from bench.routing.engine import Stream
from bench.routing.job import Flight
from bench.routing.server import Server
from bench.routing.timeline import Timeline
from bench.routing.workload import Workload
from discovery.endpoint import Load
from stoker.v1.worker_link_pb2 import Bid
from stoker_common.refusal import Refusal

# One way between processes of a zone, and between zones.
LINK_S, ZONE_S = 0.0005, 0.015
# A zone's servers vanish without a word, which their links notice (router/silence.py).
NOTICED_S = 2.0
# A catalog's news of a model that came or went.
CATALOG_S = 0.1


class Process(Protocol):
    """A router process, Stoker's or a baseline's. It calls `Mesh.dispatch` once it has chosen."""

    def submit(self, flight: Flight) -> None:
        """A request came, or came back because its server was lost."""

    def first(self, flight: Flight) -> None:
        """Its first token came."""

    def ended(self, flight: Flight) -> None:
        """Its last token came."""

    def failed(self, flight: Flight, server: str) -> None:
        """Its server was lost; it is submitted again."""

    def outbid(self, flight: Flight, server: str, load: Load) -> None:
        """More waits there than the router wanted; for those that say how much."""

    def reported(self, server: str, load: Load, digest: Mapping[int, bool]) -> None:
        """A server reported its load, and which blocks came to its caches (True) and went."""

    def changed(self) -> None:
        """Servers came or went, or their models' residency changed."""


Make = Callable[["Mesh", int], Process]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left."""

    flights: list[Flight]
    servers: list[Server]
    # Streams on each server, twice a second.
    samples: list[list[int]]


class Mesh:
    """A fleet and its routers on one timeline."""

    def __init__(self, workload: Workload, make: Make, routers: int, seed: int) -> None:
        self.workload = workload
        self.timeline = Timeline()
        self.rng = random.Random(seed)
        self.servers = {
            spec.name: Server(
                spec,
                self.timeline,
                random.Random(self.rng.random()),
                lambda stream: self._back(stream, Process.first),
                lambda stream: self._back(stream, Process.ended),
                self._reported,
                lambda: self.timeline.after(CATALOG_S, self._changed),
            )
            for spec in workload.servers
        }
        self._processes = [make(self, place) for place in range(routers)]
        self._flights: list[Flight] = []
        self._samples: list[list[int]] = []
        self._open = 0
        # How often a router was told that its server has more to do than it knew.
        self.outbid = 0

    def run(self) -> Run:
        """Until every request has ended or was rejected."""
        for job in self.workload.jobs:
            flight = Flight(job, self.rng.randrange(len(self._processes)))
            self._flights.append(flight)
            self.timeline.at(job.arrival_s, partial(self._processes[flight.router].submit, flight))
        self._open = len(self._flights)
        if self.workload.loss is not None:
            zone = self.workload.loss.zone
            self.timeline.at(self.workload.loss.at_s, lambda: self._lose(zone))
        self._sample()
        self.timeline.run()
        return Run(self._flights, list(self.servers.values()), self._samples)

    def dispatch(self, flight: Flight, server: str, bid: Bid | None = None) -> None:
        """A router sends a request on its way, to be told if more waits there than it bids."""
        flight.server = server
        flight.attempts += 1
        flight.dispatched_s = self.timeline.now_s
        to = self.servers[server]
        self.timeline.after(self._way_s(to), lambda: self._arrive(flight, to, bid))

    def ready(self, server: str, model: str, told: Callable[[bool, float | None], None]) -> None:
        """A router asks a server to make a model hot; `told` hears whether it is, else when to ask again."""
        to = self.servers[server]
        way_s = self._way_s(to)

        def answer(ready: bool, retry_s: float | None) -> None:
            self.timeline.after(way_s, lambda: told(ready, retry_s))

        self.timeline.after(way_s, lambda: to.residents.ready(model, answer) if to.alive else answer(False, None))

    def reject(self, flight: Flight) -> None:
        """A router refuses a request."""
        flight.rejected = True
        self._open -= 1

    def _arrive(self, flight: Flight, server: Server, bid: Bid | None) -> None:
        if not server.alive:
            self.timeline.after(NOTICED_S, lambda: self._fail(flight, server))
            return
        try:
            server.start(flight, bid)
        except Refusal:
            flight.attempts -= 1
            self.outbid += 1
            tell = partial(self._processes[flight.router].outbid, flight, server.spec.name, server.load())
            self.timeline.after(self._way_s(server), tell)

    def _back(self, stream: Stream, tell: Callable[[Process, Flight], None]) -> None:
        """What a server says of a stream reaches the router that sent it."""
        flight = stream.flight
        if tell is Process.first:
            flight.cached_tokens = max(0, stream.cached_tokens) if flight.first_s is None else flight.cached_tokens
        self.timeline.after(self._way_s(self.servers[flight.server]), lambda: self._tell(flight, tell))

    def _tell(self, flight: Flight, tell: Callable[[Process, Flight], None]) -> None:
        now_s, process = self.timeline.now_s, self._processes[flight.router]
        if tell is Process.first:
            if flight.waited_ms is None:
                flight.waited_ms = (now_s - flight.dispatched_s) * 1e3
            if flight.first_s is None:
                flight.first_s = now_s
            process.first(flight)
        else:
            flight.last_s = now_s
            self._open -= 1
            process.ended(flight)

    def _reported(self, server: Server, load: Load) -> None:
        self.timeline.after(self._way_s(server), partial(self._report, server.spec.name, load, server.digest()))

    def _report(self, server: str, load: Load, digest: Mapping[int, bool]) -> None:
        for process in self._processes:
            process.reported(server, load, digest)

    def _changed(self) -> None:
        for process in self._processes:
            process.changed()

    def _lose(self, zone: str) -> None:
        for server in self.servers.values():
            if server.spec.zone == zone:
                for flight in server.die():
                    self.timeline.after(NOTICED_S, partial(self._fail, flight, server))
        self.timeline.after(NOTICED_S, self._changed)

    def _fail(self, flight: Flight, server: Server) -> None:
        process = self._processes[flight.router]
        process.failed(flight, server.spec.name)
        process.submit(flight)

    def _way_s(self, server: Server) -> float:
        return LINK_S if server.spec.zone == self.workload.home else ZONE_S

    def _sample(self) -> None:
        self._samples.append([server.streams for server in self.servers.values()])
        for server in self.servers.values():
            server.beat()
        if self._open:
            self.timeline.after(0.5, self._sample)
