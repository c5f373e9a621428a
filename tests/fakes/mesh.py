"""A mesh in this process: simulated servers, a catalog in memory or a real one, a router in each zone."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from discovery.memory import MemoryCatalog
from model_server.config import ServerSettings
from model_server.engines.sim_settings import SimSettings
from router.call_transport import CallTransport
from router.config import RouterSettings
from router.link_transport import LinkTransport
from router.report import Identity
from router.server import RouterServer, World
from stoker_common import tracing
from stoker_common.link.client import LinkRules
from stoker_common.tracing import Tracing
from tests.fakes.chosen import http2
from tests.fakes.fleet import FAST, Catalog, FleetServer, fleet, server_settings
from tests.fakes.until import until

ZONES = ("zone-a", "zone-b")


@dataclass(frozen=True, slots=True)
class Mesh:
    """What runs. Servers zone by zone, routers by zone."""

    catalog: Catalog
    servers: list[FleetServer]
    routers: dict[str, RouterServer]

    @property
    def address(self) -> str:
        """Where the first zone's router listens."""
        return self.address_of(ZONES[0])

    def address_of(self, zone: str) -> str:
        """Where the zone's router listens."""
        return f"127.0.0.1:{self.routers[zone].port}"

    def server(self, server_id: str) -> FleetServer:
        """The server called `server_id`."""
        return next(each for each in self.servers if each.server.settings.server_id == server_id)

    def idle(self) -> bool:
        """Whether every counter of work in flight is at zero, in routers, servers and engines."""
        for router in self.routers.values():
            ledger = router.learned.ledger
            booked = [account.own_prompt_tokens or account.own_streams for account in ledger.accounts.values()]
            if ledger.in_flight or any(booked) or router.registry.get_sample_value("stoker_router_in_flight"):
                return False
        for member in self.servers:
            load = member.engine.load()
            if len(member.server.in_flight) or member.server.models.meters.sequences or load.running or load.waiting:
                return False
        return True


@asynccontextmanager
async def router(
    catalog: Catalog, zone: str, traces: Tracing | None = None, *, links: bool = True, **changes: Any
) -> AsyncIterator[RouterServer]:
    """A router of the zone, serving."""
    settings = RouterSettings(
        **{"zone": zone, "listen_port": 0, "drain_seconds": 5.0, "http2": http2("router"), **changes}
    )
    rng = random.Random(1)
    calls = CallTransport(settings.http2)
    linked = LinkTransport(calls, router=f"router-{zone}", zone=zone, clock=time.monotonic, rng=rng, rules=LinkRules())
    world = World(
        watcher=catalog.watcher(zone),
        transport=linked if links else calls,
        traces=traces or tracing.configure("stoker-router", environ={}),
        clock=time.monotonic,
        rng=rng,
    )
    server = RouterServer(settings, Identity(f"router-{zone}", zone, "test", time.time()), world)
    started = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run(started))
        await started.wait()
        try:
            yield server
        finally:
            server.stop()


@asynccontextmanager
async def mesh(
    servers_per_zone: int = 1,
    *,
    catalog: Catalog | None = None,
    zones: Sequence[str] = ZONES,
    sim: SimSettings = FAST,
    **settings: Any,
) -> AsyncIterator[Mesh]:
    """Zones of simulated servers, each with a router that sees them all. `settings` are the routers', and `ticket_key`
    the servers' as well."""
    catalog = catalog or MemoryCatalog(zones)
    ticket_key = settings.get("ticket_key", "")

    def own(zone: str, i: int) -> ServerSettings:
        return server_settings(zone=zone, server_id=f"{zone}-{i}", ticket_key=ticket_key)

    async with AsyncExitStack() as held:
        servers = await held.enter_async_context(fleet(catalog, servers_per_zone, sim=sim, settings=own))
        routers = {zone: await held.enter_async_context(router(catalog, zone, **settings)) for zone in catalog.zones}
        for each in routers.values():
            await until(lambda each=each: len(each.fleet.snapshot.members) == len(servers))  # type: ignore[misc]
            # Else a quick first request goes by a call of its own, which not all of a router looks after.
            await each.transport.reached(5.0)
        yield Mesh(catalog, servers, routers)
