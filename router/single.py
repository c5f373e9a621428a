"""A router of one process: it serves, and it registers itself."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from discovery.consul_client import ConsulClient
from discovery.consul_registrar import ConsulRegistrar
from discovery.router_record import ROUTER
from router.config import RouterSettings
from router.process import Place, serve
from router.registration import TIMING, registered, router_id
from router.server import RouterServer
from stoker_common.metrics import MetricsServer


async def serve_alone(settings: RouterSettings) -> None:
    """Until SIGTERM or SIGINT. Raises OSError for ports that cannot be had."""
    registrars: list[ConsulRegistrar] = []

    @asynccontextmanager
    async def announce(
        consul: ConsulClient, server: RouterServer, scraped: MetricsServer | None
    ) -> AsyncIterator[asyncio.Event]:
        registrar = ConsulRegistrar(consul, rng=random.Random(), timing=TIMING, form=ROUTER)
        registrars.append(registrar)
        async with registered(registrar, settings, lambda: server.port) as listening:
            yield listening

    def leaving() -> None:
        # Clients are told first, so that none finds this router while it drains.
        for registrar in registrars:
            registrar.leaving("drains")

    await serve(settings, Place(router_id(settings)), announce, leaving)
