"""A router process's parts put together and run: watch the catalog, serve, drain. The outside world is passed in."""

import asyncio
import logging
import random
import time
from collections.abc import Collection
from dataclasses import dataclass

import grpc.aio
from prometheus_client import CollectorRegistry

from discovery.catalog import CatalogView, Watcher
from discovery.endpoint import Endpoint, Load
from router.admission import Admission, AdmissionRules
from router.admission_metrics import AdmissionMetrics
from router.attempt import Transport
from router.caches import Caches
from router.calibration import Calibration
from router.client_link import ClientLinks
from router.config import RouterSettings
from router.crawl import Crawl
from router.data_path import DataPath
from router.direct import Direct, Tickets
from router.ejection import Breakers, Cause, EjectionRules
from router.entry import Entry
from router.fleet import Fleet
from router.learned import Learned
from router.ledger import Key, Ledger
from router.maintenance import Maintenance
from router.metrics import FleetCollector, RouterMetrics
from router.model_service import ModelService
from router.operations import OperationsService
from router.policies import policy
from router.readying import Readying
from router.report import Identity, Report
from router.reservations import ReservationMetrics, Reservations
from router.retries import RetryRules
from router.retry_budget import RetryBudget, RetryBudgetRules
from router.room import RoomRules, Rooms
from router.router import Router
from router.scorers import Rates
from router.service import InferenceService, RouterService
from router.sessions import Sessions
from router.sizing import Sizing
from router.ways import Ways
from stoker.v1 import worker_link_pb2
from stoker_common.clock import Clock
from stoker_common.health import SERVICE as HEALTH_SERVICE
from stoker_common.health import Health
from stoker_common.link.state import LinkState
from stoker_common.servers import reflect, server
from stoker_common.tickets import TicketKeys
from stoker_common.tracing import Tracing

log = logging.getLogger(__name__)

# A server that can be reached has welcomed the router by then; one that cannot is no reason not to serve.
_REACHED_WITHIN_S = 2.0

SERVICES = (
    "stoker.v1.InferenceService",
    "stoker.v1.ModelService",
    "stoker.v1.RouterService",
    "stoker.v1.OperationsService",
)


@dataclass(frozen=True, slots=True)
class World:
    """What a router process needs from outside."""

    watcher: Watcher
    transport: Transport
    traces: Tracing
    clock: Clock
    rng: random.Random
    wall_clock: Clock = time.time


class RouterServer:
    """One router. `run` serves until `stop` is called; build as many in a process as you like."""

    def __init__(self, settings: RouterSettings, identity: Identity, world: World, *, share_port: bool = False) -> None:
        self._settings = settings
        self._world = world
        self._share_port = share_port
        self.transport = world.transport
        self._stop = asyncio.Event()
        self._known = asyncio.Event()
        self.registry = CollectorRegistry()
        self.learned = Learned(
            ledger=Ledger(world.clock),
            breakers=Breakers(
                EjectionRules(settings.ejection_failures, settings.ejection_base_s, settings.ejection_max_s),
                world.clock,
                world.rng,
            ),
            caches=Caches(Sessions(settings.sessions)),
            sizing=Sizing(),
            ways=Ways(),
            calibration=Calibration(world.clock),
        )
        self.fleet = Fleet(self.learned.ledger, self._members_changed)
        self.readying = Readying(world.transport, self.registry, world.clock, self.fleet.hot)
        self.admission = Admission(
            AdmissionRules(settings.queue_length, settings.hold_s),
            Rooms(RoomRules(settings.waiting_per_server), self.learned.ledger, world.clock),
            self.fleet,
            self.learned,
            self.readying,
            AdmissionMetrics(self.registry),
            world.clock,
        )
        metrics = RouterMetrics(self.registry)
        keys = TicketKeys.parse(settings.ticket_key.get_secret_value())
        tickets = Tickets(keys, identity.router, world.wall_clock, settings.ticket_seconds)
        self.router = Router(
            fleet=self.fleet,
            policy=policy(
                settings.policy, settings.zone, Rates(leave_zone_ms=settings.leave_zone_ms), settings.near_share
            ),
            learned=self.learned,
            admission=self.admission,
            readying=self.readying,
            retry_budget=RetryBudget(RetryBudgetRules(settings.retry_share, settings.retry_per_s), world.clock),
            transport=world.transport,
            metrics=metrics,
            traces=world.traces,
            clock=world.clock,
            rng=world.rng,
            retry=RetryRules(settings.max_attempts),
            ticket=tickets.own,
        )
        self.reservations = Reservations(
            lease_s=settings.ticket_seconds,
            clock=world.clock,
            metrics=metrics,
            counts=ReservationMetrics(self.registry),
            transport=world.transport,
            rooms=self.admission.rooms,
        )
        direct = Direct(self.router, self.learned, self.reservations, tickets, metrics, world.traces, world.clock)
        self._entry = Entry(self.router, direct, world.clock)
        self.client_links = ClientLinks(self._entry, world.clock, self.registry)
        self.registry.register(FleetCollector(self.fleet, self.learned.ledger, self.learned.breakers, world.clock))
        self.report = Report(identity, self.router.picks, self.fleet, self.learned)
        self._data_path = DataPath(self.fleet, world.transport, self._forget, rng=world.rng)
        self._maintenance = Maintenance(
            self.fleet, self.router.running, self.router.onward.movable, world.clock, settings.maintenance_grace_s
        )
        self._crawl = Crawl(
            self.fleet,
            self.router.running,
            self.learned.ledger,
            self.learned.breakers,
            self.router.onward.movable,
            world.clock,
        )
        self.transport.hear(self.reservations.news)
        self.transport.listen(self._load_reported, self._link_changed, self._cached)
        self._health = Health(SERVICES)
        self.port = 0

    async def run(self, started: asyncio.Event | None = None) -> None:
        """Serve until `stop`, then let what is in flight end. Raises OSError if the port cannot be had."""
        serving = await self._listen()
        await serving.start()
        log.info("listening", extra={"address": f"{self._settings.listen_host}:{self.port}"})
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = [
                    tasks.create_task(self._world.watcher.run(self._publish), name="catalog"),
                    tasks.create_task(self._data_path.run(), name="data path"),
                    tasks.create_task(self.transport.run(), name="transport"),
                    tasks.create_task(self._ready(), name="ready"),
                    tasks.create_task(self._maintenance.run(), name="maintenance"),
                    tasks.create_task(self._crawl.run(), name="crawl"),
                    tasks.create_task(self.reservations.run(), name="reservations"),
                    tasks.create_task(self.readying.run(), name="readying"),
                ]
                if started is not None:
                    started.set()
                await self._stop.wait()
                await self._drain(serving)
                for task in watching:
                    task.cancel()
        finally:
            await serving.stop(None)
            await self.transport.close()

    def stop(self) -> None:
        """Take no new requests, finish those in flight within the limit, return from `run`. May be called twice."""
        self._stop.set()

    async def _listen(self) -> grpc.aio.Server:
        serving = server(self._settings.http2, share_port=self._share_port, registry=self.registry)
        for service in (
            InferenceService(self._entry),
            ModelService(self.report, self.fleet, self.learned.ledger, self.transport),
            RouterService(self._entry, self.report, self._world.clock),
            OperationsService(self.fleet, self.transport),
            self.client_links,
        ):
            serving.add_generic_rpc_handlers((service.handler(),))
        serving.add_generic_rpc_handlers((self._health.handlers(),))
        if self._settings.reflection:
            reflect(serving, (*SERVICES, HEALTH_SERVICE))
        address = f"{self._settings.listen_host}:{self._settings.listen_port}"
        try:
            self.port = serving.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is the port taken? Set listen_port to another") from error
        return serving

    async def _drain(self, serving: grpc.aio.Server) -> None:
        log.info("draining", extra={"in_flight": self.learned.ledger.in_flight})
        self._health.set(serving=False)
        self.client_links.goodbye()
        await serving.stop(self._settings.drain_seconds)

    def _publish(self, view: CatalogView) -> None:
        self.fleet.publish(view)
        if self.fleet.snapshot.known:
            self._known.set()

    async def _ready(self) -> None:
        """Call the router healthy once it can choose well."""
        # Before the catalog was read, no request could be answered; and what it says of loads is old.
        await self._known.wait()
        await self.transport.reached(_REACHED_WITHIN_S)
        if not self._stop.is_set():
            self._health.set(serving=True)

    def _members_changed(self, members: Collection[Key]) -> None:
        known = self.fleet.snapshot.members
        self.learned.breakers.keep({key: known[key].endpoint.zone for key in members})
        self.learned.caches.keep(members)
        self.learned.calibration.keep(members)
        self.learned.first_tokens.keep(members)
        self.transport.keep(member.endpoint for member in self.fleet.snapshot.members.values())

    def _link_changed(self, endpoint: Endpoint, state: LinkState) -> None:
        key = (endpoint.server, endpoint.epoch)
        log.info("link", extra={"server": endpoint.server, "epoch": endpoint.epoch, "state": state.value})
        self.fleet.leaving(key, leaving=state is LinkState.LEAVING)
        if state is LinkState.DOWN:
            self.learned.caches.silent(key)
            self.reservations.lost(key)
        if key not in self.fleet.snapshot.members:
            return  # its link was let go of because it is gone
        if state is LinkState.DOWN:
            self.learned.breakers.lost(key)
        elif state is LinkState.STALLED:
            self.learned.breakers.lost(key, Cause.STALLED)
        elif state is LinkState.UP:
            self.learned.breakers.reached(key)
            self.admission.room()

    def _load_reported(self, endpoint: Endpoint, load: Load) -> None:
        self.learned.ledger.report((endpoint.server, endpoint.epoch), load)

    def _cached(self, endpoint: Endpoint, digest: worker_link_pb2.CacheDigest) -> bool:
        return self.learned.caches.announced((endpoint.server, endpoint.epoch), digest)

    def _forget(self, endpoints: Collection[Endpoint]) -> None:
        for zone in {endpoint.zone for endpoint in endpoints}:
            lives = [(endpoint.server, endpoint.epoch) for endpoint in endpoints if endpoint.zone == zone]
            self._world.watcher.forget(zone, lives)
