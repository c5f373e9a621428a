"""`python -m router`: settings, signals, and the outside world around a RouterServer."""

import asyncio
import random
import signal
import sys
import time
from importlib.metadata import version

import uvloop

from discovery.consul_client import ConsulClient
from discovery.consul_registrar import ConsulRegistrar, RegistrarTiming
from discovery.consul_watcher import ConsulWatcher
from discovery.router_record import ROUTER
from router.call_transport import CallTransport
from router.config import RouterSettings
from router.link_transport import LinkTransport
from router.registration import registered
from router.report import Identity
from router.server import RouterServer, World
from stoker_common import logs, metrics, tracing
from stoker_common.link.client import LinkRules
from stoker_common.settings import SettingsError, load

# Nobody watches for routers, so there is nobody to wait for when the record goes.
TIMING = RegistrarTiming(settle_s=0.0, leave_within_s=2.0)


async def serve(settings: RouterSettings) -> None:
    """Run one router until SIGTERM or SIGINT."""
    router_id = settings.router_id or f"router-{settings.zone}"
    traces = tracing.configure("stoker-router", settings.otlp_endpoint or None)
    rng = random.Random()
    async with ConsulClient(settings.consul_address) as consul:
        world = World(
            watcher=ConsulWatcher(consul, settings.zone, rng=rng, zones=settings.zones or None),
            transport=LinkTransport(
                CallTransport(), router=router_id, zone=settings.zone, clock=time.monotonic, rng=rng, rules=LinkRules()
            ),
            traces=traces,
            clock=time.monotonic,
            rng=rng,
        )
        server = RouterServer(settings, Identity(router_id, settings.zone, version("stoker"), time.time()), world)
        registrar = ConsulRegistrar(consul, rng=rng, timing=TIMING, form=ROUTER)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _leave, registrar, server)
        scraped = None
        if settings.metrics_port >= 0:
            scraped = metrics.serve(server.registry, settings.metrics_host, settings.metrics_port)
        try:
            async with registered(registrar, settings, router_id, server) as listening:
                await server.run(listening)
        finally:
            if scraped is not None:
                scraped.close()
            traces.shutdown()


def _leave(registrar: ConsulRegistrar, server: RouterServer) -> None:
    """Clients are told first, so that none finds this router while it drains."""
    registrar.leaving("drains")
    server.stop()


def main() -> int:
    """The process's exit status."""
    try:
        settings = load(RouterSettings, "router", sys.argv[1:])
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    logs.configure(settings.log_level, "router", sys.stdout)
    try:
        uvloop.run(serve(settings))
    except OSError as error:
        sys.stderr.write(f"router: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
