"""A Stoker router process on virtual time: the router's own policy, ledger, breakers, queue and what it learns.

What is left out of the router here is its I/O: gRPC, the catalog's watcher, and the asyncio around its queue
(router/admission.py), whose rules, order and verdicts are these.
"""

import random
from collections import Counter
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from bench.routing.digests import Digests
from bench.routing.job import Flight
from bench.routing.mesh import ZONE_S, Mesh
from discovery.catalog import CatalogEntry, CatalogState, CatalogView, ZoneView
from discovery.endpoint import Load
from router.admission import AdmissionRules
from router.bids import bid
from router.caches import Caches
from router.calibration import Calibration
from router.dispatch import expect
from router.ejection import Breakers, EjectionRules
from router.first_tokens import Expectation
from router.hot import choose_hot
from router.learned import Learned
from router.ledger import NOTHING, Booking, Key, Ledger
from router.policy import Chosen, Conditions, Policy
from router.prefix_index import Expected
from router.request import Request
from router.room import RoomRules, Rooms
from router.scorers import Rates
from router.sessions import Sessions
from router.sizing import Sizing
from router.snapshot import NOBODY, Snapshot, build
from router.verdict import Prospect, may_wait
from router.waiting import Place, Waiting
from router.ways import Ways
from stoker.v1 import generation_pb2
from stoker_common.prefix import session_hash
from stoker_common.prompt_work import prompt_work

EPOCH = "1"


class StokerProcess:
    """One router process."""

    def __init__(self, mesh: Mesh, place: int) -> None:
        self._mesh = mesh
        clock = mesh.timeline
        self._rng = random.Random(mesh.rng.random())
        self.learned = Learned(
            ledger=Ledger(clock),
            breakers=Breakers(EjectionRules(), clock, self._rng),
            caches=Caches(Sessions(100_000)),
            sizing=Sizing(),
            ways=Ways(),
            calibration=Calibration(clock),
        )
        self._rooms = Rooms(RoomRules(), self.learned.ledger, clock)
        self._policy = Policy(mesh.workload.home, Rates())
        self._rules = AdmissionRules()
        self._queues: dict[str, Waiting[Flight]] = {}
        self._places: dict[int, Place[Flight]] = {}
        self._bookings: dict[int, tuple[Booking, Chosen, Expectation]] = {}
        self._tried: dict[int, set[Key]] = {}
        self._digests = Digests(self.learned.caches.index, ((name, EPOCH) for name in mesh.servers))
        # Models that a server readies for this router, and servers that could not a moment ago, with until when.
        self._readying: set[str] = set()
        self._unable: dict[str, dict[Key, float]] = {}
        # Requests whose prompts are on their way to a server's cache.
        self._expected: dict[int, Expected] = {}
        self._draining = False
        # How often each request was outbid.
        self._outbid: Counter[int] = Counter()
        self._snapshot = Snapshot()
        self.changed()
        self.learned.ledger.listen(self._room)

    def submit(self, flight: Flight) -> None:
        """A request came, or goes on elsewhere: then it does not queue."""
        again = flight.attempts > 0
        queue = self._queues.setdefault(flight.job.model, Waiting())
        if again or not len(queue):
            chosen = self._choose(flight) if again else self._choose_hot(flight)
            if chosen is not None:
                self._dispatch(flight, chosen)
                return
        if again:  # held until there is a server
            self._mesh.timeline.after(0.2, lambda: self.submit(flight))
            return
        prospect = self._prospect(flight, queue)
        if may_wait(prospect, self._rules.queue_length, flight.job.model) is not None:
            self._mesh.reject(flight)
            return
        now_s = self._mesh.timeline.now_s
        queue.add(0, None, now_s, flight)

    def first(self, flight: Flight) -> None:
        """Its first token came."""
        booking, chosen, expected = self._bookings[flight.job.number]
        booking.first_token()
        self._arrived(flight)
        key, now_s = (flight.server, EPOCH), self._mesh.timeline.now_s
        cost = chosen.candidate.cost
        self.learned.breakers.answered(key, flight.dispatched_s)
        waited_ms = (now_s - flight.dispatched_s) * 1e3
        self.learned.breakers.timed(key, waited_ms, cost.total_ms - cost.decode_ms, flight.dispatched_s)
        cached, attention = flight.cached_tokens, self.learned.ledger.attention_tokens(key)
        computed = prompt_work(flight.job.prompt_tokens + flight.emitted - cached, cached, attention)
        self.learned.first_tokens.came(key, flight.job.model, expected, computed, waited_ms, now_s)
        # A server's first answer to a request carries its load.
        server = self._mesh.servers[flight.server]
        if server.alive:
            self.learned.ledger.report(key, server.load())

    def ended(self, flight: Flight) -> None:
        """Its last token came."""
        booking, chosen, _ = self._bookings.pop(flight.job.number)
        self._tried.pop(flight.job.number, None)
        job, key, now_s = flight.job, (flight.server, EPOCH), self._mesh.timeline.now_s
        self.learned.breakers.succeeded(key, flight.dispatched_s)
        self.learned.sizing.observe_output(_generation(job.model), job.output_tokens)
        self.learned.services.observe(job.model, now_s - flight.dispatched_s, job.output_tokens)
        zone = chosen.candidate.holder.member.endpoint.zone
        way_ms = 0.0 if zone == self._mesh.workload.home else 2e3 * ZONE_S
        self.learned.ways.observe(zone, way_ms, 0.0)
        booking.close()

    def failed(self, flight: Flight, server: str) -> None:
        """Its link to the server is silent."""
        entry = self._bookings.pop(flight.job.number, None)
        key = (server, EPOCH)
        self._tried.setdefault(flight.job.number, set()).add(key)
        self.learned.breakers.lost(key)
        self._arrived(flight)
        if entry is not None:
            entry[0].close()

    def outbid(self, flight: Flight, server: str, load: Load) -> None:
        """Its load came first; pick anew."""
        self._outbid[flight.job.number] += 1
        self.learned.ledger.report((server, EPOCH), load)
        self._bookings.pop(flight.job.number)[0].close()
        self._arrived(flight)
        self.submit(flight)

    def reported(self, server: str, load: Load, digest: Mapping[int, bool]) -> None:
        """Over its link."""
        self._digests.announced((server, EPOCH), digest)
        self.learned.ledger.report((server, EPOCH), load)

    def changed(self) -> None:
        """The catalog's view, as it is now."""
        zones: dict[str, dict[str, CatalogEntry]] = {}
        for server in self._mesh.servers.values():
            if server.alive:
                zone = zones.setdefault(server.spec.zone, {})
                zone[server.spec.name] = CatalogEntry(server.endpoint(), CatalogState.PASSING)
        now_s = self._mesh.timeline.now_s
        view = CatalogView(
            MappingProxyType({name: ZoneView(name, MappingProxyType(zone), now_s) for name, zone in zones.items()})
        )
        self._snapshot = build(view, frozenset())
        self.learned.breakers.keep({key: each.endpoint.zone for key, each in self._snapshot.members.items()})
        self.learned.ledger.keep(self._snapshot.members)
        self.learned.caches.keep(self._snapshot.members)

    def _request(self, flight: Flight) -> Request:
        """The request as the policy sees it."""
        job = flight.job
        return Request(
            request_id=str(job.number),
            model=job.model,
            prompt_tokens=job.prompt_tokens + flight.emitted,
            expected_output_tokens=self.learned.sizing.output_tokens(_generation(job.model)),
            session=session_hash(job.model, "", job.session),
        )

    def _choose(self, flight: Flight) -> Chosen | None:
        """For a stream that goes on elsewhere: also where there is no room."""
        request, tried = self._request(flight), self._tried.get(flight.job.number, ())
        return self._policy.choose(request, self._snapshot, tried, self._conditions(flight, None), self._rng)

    def _choose_hot(self, flight: Flight) -> Chosen | None:
        """As Router.choose_hot."""
        model, now_s = flight.job.model, self._mesh.timeline.now_s
        unable = [key for key, until_s in self._unable.get(model, {}).items() if until_s > now_s]
        tried = self._tried.get(flight.job.number, ())
        chosen, nearest = choose_hot(
            self._policy,
            self._request(flight),
            self._snapshot,
            tried,
            unable,
            self._conditions(flight, self._rooms),
            self._rng,
        )
        if nearest is not None and model not in self._readying:
            self._readying.add(model)
            key = nearest.holder.member.key
            self._mesh.ready(key[0], model, partial(self._readied, model, key))
        return chosen

    def _readied(self, model: str, key: Key, ready: bool, retry_s: float | None) -> None:
        """As Readying: the server's word counts before the catalog's."""
        self._readying.discard(model)
        if ready:
            self._unable.pop(model, None)
            self.changed()
        else:
            self._unable.setdefault(model, {})[key] = self._mesh.timeline.now_s + (retry_s or 1.0)
        self._room()

    def _conditions(self, flight: Flight, rooms: Rooms | None) -> Conditions:
        learned = self.learned
        held = self._digests.held(flight.job.chain)
        return Conditions(
            accounts=learned.ledger.accounts,
            breakers=learned.breakers,
            held=held,
            ways_ms=learned.ways.ms,
            now_s=self._mesh.timeline.now_s,
            rooms=rooms,
            typical=learned.ledger.typical,
            session=held if flight.job.session else {},
        )

    def _dispatch(self, flight: Flight, chosen: Chosen) -> None:
        cost, key = chosen.candidate.cost, chosen.candidate.holder.member.key
        computed = flight.job.prompt_tokens + flight.emitted - cost.cached_tokens
        request, now_s = self._request(flight), self._mesh.timeline.now_s
        expected = expect(self.learned, request, chosen.candidate, now_s)
        ledger = self.learned.ledger
        account, lost = ledger.accounts.get(key, NOTHING), self._outbid[flight.job.number]
        offer = bid(request, chosen, account, ledger.typical, lost) if not flight.attempts else None
        booking = ledger.book(key, computed, cost.cached_tokens, expected.total_ms)
        self._bookings[flight.job.number] = (booking, chosen, expected)
        if flight.attempts == 0:
            flight.predicted_ms = expected.total_ms
        self.learned.breakers.dispatched(key)
        if flight.job.number not in self._expected:
            self._expected[flight.job.number] = self._digests.expect(key, flight.job.chain)
        self._mesh.dispatch(flight, key[0], offer)

    def _arrived(self, flight: Flight) -> None:
        if expected := self._expected.pop(flight.job.number, None):
            expected.close()

    def _room(self) -> None:
        """Some server may have more room: whoever is first looks."""
        if self._draining:
            return
        self._draining = True
        for queue in self._queues.values():
            while queue.first is not None:
                place = queue.first
                chosen = self._choose_hot(place.who)
                if chosen is None:
                    break
                queue.remove(place)
                place.who.queued_s = self._mesh.timeline.now_s - place.since_s
                self._dispatch(place.who, chosen)
        self._draining = False

    def _prospect(self, flight: Flight, queue: Waiting[Flight]) -> Prospect:
        accounts, services = self.learned.ledger.accounts, self.learned.services
        holders = self._snapshot.holders.get(flight.job.model, NOBODY).by_key
        running = sum(accounts.get(key, NOTHING).own_streams for key in holders)
        request_s = services.request_s(flight.job.model)
        return Prospect(
            ahead=len(queue),
            queued=len(queue),
            turn_s=request_s / running if running and request_s is not None else None,
            service_s=None,
            remaining_s=None,
        )


_GENERATIONS: dict[str, generation_pb2.Generation] = {}


def _generation(model: str) -> generation_pb2.Generation:
    """What a request says of its lengths: nothing, as most do."""
    if model not in _GENERATIONS:
        _GENERATIONS[model] = generation_pb2.Generation(model=model)
    return _GENERATIONS[model]
