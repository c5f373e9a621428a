"""One router process: the outside world around a RouterServer, until it is told to stop."""

import asyncio
import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.metadata import version

from discovery.consul_client import ConsulClient
from discovery.consul_watcher import ConsulWatcher
from router.call_transport import CallTransport
from router.config import RouterSettings
from router.link_transport import LinkTransport
from router.report import Identity
from router.server import RouterServer, World
from stoker_common import memory, metrics, tracing
from stoker_common.link.client import LinkRules

# While it is entered the process is known to its clients; it says by the event that the process listens.
Announce = Callable[
    [ConsulClient, RouterServer, metrics.MetricsServer | None], AbstractAsyncContextManager[asyncio.Event]
]


@dataclass(frozen=True, slots=True)
class Place:
    """Which process of a router this is. `name` is for links, traces and logs."""

    name: str
    share_port: bool = False


async def serve(settings: RouterSettings, place: Place, announce: Announce, leaving: Callable[[], None]) -> None:
    """Run one router process until SIGTERM or SIGINT, at which `leaving` is called first. Raises OSError for ports."""
    traces = tracing.configure("stoker-router", settings.otlp_endpoint or None)
    rng = random.Random()
    async with ConsulClient(settings.consul_address) as consul:
        world = World(
            watcher=ConsulWatcher(consul, settings.zone, rng=rng, zones=settings.zones or None),
            transport=LinkTransport(
                CallTransport(settings.http2),
                router=place.name,
                zone=settings.zone,
                clock=time.monotonic,
                rng=rng,
                rules=LinkRules(),
            ),
            traces=traces,
            clock=time.monotonic,
            rng=rng,
        )
        identity = Identity(place.name, settings.zone, version("stoker"), time.time())
        server = RouterServer(settings, identity, world, share_port=place.share_port)

        def stop() -> None:
            leaving()
            server.stop()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        scraped = None
        if settings.metrics_port >= 0:
            scraped = metrics.serve(server.registry, settings.metrics_host, settings.metrics_port)
        memory.settle()
        try:
            async with announce(consul, server, scraped) as listening:
                await server.run(listening)
        finally:
            if scraped is not None:
                scraped.close()
            traces.shutdown()
