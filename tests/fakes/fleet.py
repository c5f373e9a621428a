"""Simulated model servers in this process, registered in a catalog of the test's choice. All gRPC is real."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from discovery.catalog import Registrar, Watcher
from discovery.consul_registrar import RegistrarTiming
from model_server.config import ServerSettings
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from model_server.server import ModelServer
from tests.fakes.chosen import http2

MODEL = "sim-model"
# Fast enough for tests, slow enough that a stream of a few tokens can still be interrupted.
FAST = SimSettings(load_ms=0.0, step_base_ms=2.0, step_per_stream_ms=0.01)
# Watchers in memory see a change at once; nobody has to wait for them.
QUICK = RegistrarTiming(settle_s=0.05, leave_within_s=2.0)


class Catalog(Protocol):
    """A catalog of several zones, in memory or real."""

    @property
    def zones(self) -> Sequence[str]:
        """The zones' names."""

    def registrar(self, zone: str, timing: RegistrarTiming | None = None) -> Registrar:
        """A registrar at the zone's agent."""

    def watcher(self, zone: str) -> Watcher:
        """A watcher at the zone's agent."""


@dataclass(frozen=True, slots=True)
class FleetServer:
    """A server and what is behind it."""

    server: ModelServer
    engine: SimEngine


def server_settings(**changes: Any) -> ServerSettings:
    """Settings of a server for tests: the simulator, any port, short drains."""
    return ServerSettings(
        **{"engine": "sim", "model": MODEL, "drain_seconds": 5.0, "http2": http2("model_server"), **changes}
    )


@asynccontextmanager
async def running_server(
    settings: ServerSettings | None = None, sim: SimSettings = FAST, **parts: Any
) -> AsyncIterator[FleetServer]:
    """One server, serving; drained when the block ends. `parts` go to ModelServer (registrar, clock, ...)."""
    settings = settings or server_settings()
    engine = SimEngine(settings.served_model, sim)
    async with ModelServer(settings, engine, **parts).running() as server:
        yield FleetServer(server, engine)


@asynccontextmanager
async def fleet(
    catalog: Catalog,
    servers_per_zone: int,
    *,
    sim: SimSettings = FAST,
    settings: Callable[[str, int], ServerSettings] | None = None,
    zones: Sequence[str] | None = None,
) -> AsyncIterator[list[FleetServer]]:
    """`servers_per_zone` servers in each zone of `catalog` (or in `zones`), all serving, zone by zone in order.

    Server ids are `ZONE-0`, `ZONE-1`, ...; `settings` makes those of server i of a zone otherwise. All are stopped when
    the block ends, at the same time. A server that a test stopped or broke is left alone.
    """
    make = settings or (lambda zone, i: server_settings(zone=zone, server_id=f"{zone}-{i}"))
    members: list[FleetServer] = []
    for zone in zones or catalog.zones:
        for i in range(servers_per_zone):
            own = make(zone, i)
            engine = SimEngine(own.served_model, sim)
            server = ModelServer(own, engine, catalog.registrar(zone, QUICK))
            members.append(FleetServer(server, engine))
    async with asyncio.TaskGroup() as tasks:
        lives = [tasks.create_task(member.server.run()) for member in members]
        try:
            await asyncio.gather(*(member.server.wait_serving() for member in members))
            yield members
        finally:
            for member in members:
                if not member.server.stopping:
                    member.server.stop()
            await asyncio.wait(lives)
