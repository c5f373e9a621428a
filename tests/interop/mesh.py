"""What clients meet: one model server and one router with HTTP/2 of our own, simulated engine, in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from discovery.memory import MemoryCatalog
from model_server.config import ServerSettings
from model_server.engines.sim_settings import SimSettings
from router.server import RouterServer
from tests.fakes.fleet import FleetServer, fleet, server_settings
from tests.fakes.mesh import router
from tests.fakes.until import until

ZONE = "zone-a"
# Prompts of megabytes, and streams of a token every 4 ms: what is joined is joined, and 400 tokens take 1.6 s.
_SIM = SimSettings(
    load_ms=0.0,
    step_base_ms=4.0,
    step_per_stream_ms=0.0,
    max_streams=1024,
    max_model_tokens=8 << 20,
    max_batched_tokens=8 << 20,
    kv_tokens=16 << 20,
    prefill_tokens_per_second=1e9,
)


@dataclass(slots=True)
class Served:
    """A router on one port, which can be told to leave and come back; and the server behind it."""

    catalog: MemoryCatalog
    server: FleetServer
    port: int = 0
    http2: str = "stoker"
    _router: RouterServer | None = None
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> str:
        """The router's."""
        return f"127.0.0.1:{self.port}"

    @property
    def registry(self) -> CollectorRegistry:
        """The router's metrics. It runs."""
        assert self._router is not None
        return self._router.registry

    def leave(self) -> None:
        """Take nothing new, and let what runs end."""
        self._over.set()

    async def live(self, started: asyncio.Event) -> None:
        """One life of the router, until `leave` and the end of what runs."""
        self._over.clear()
        async with router(self.catalog, ZONE, listen_port=self.port, http2=self.http2, drain_seconds=30.0) as serving:
            self._router, self.port = serving, serving.port
            await until(lambda: bool(serving.fleet.snapshot.members))
            await serving.transport.reached(5.0)
            started.set()
            await self._over.wait()

    def idle(self) -> bool:
        """Whether nothing is left of any call, in the router, the server and the engine."""
        load = self.server.engine.load()
        routing = self._router.learned.ledger.in_flight if self._router is not None else 0
        return not (routing or len(self.server.server.in_flight) or load.running or load.waiting)


@asynccontextmanager
async def served(http2: str) -> AsyncIterator[Served]:
    """The server, serving; the router is the caller's to start."""
    catalog = MemoryCatalog((ZONE,))

    def settings(zone: str, i: int) -> ServerSettings:
        return server_settings(zone=zone, server_id=f"{zone}-{i}", http2=http2)

    async with fleet(catalog, 1, sim=_SIM, settings=settings) as (member,):
        yield Served(catalog, member, http2=http2)
