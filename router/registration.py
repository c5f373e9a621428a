"""Keeps a router in Consul while it serves, so that clients find it."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from discovery.catalog import Registrar
from discovery.consul_registrar import RegistrarTiming
from discovery.endpoint import Endpoint
from router.config import RouterSettings

# Nobody watches for routers, so there is nobody to wait for when the record goes.
TIMING = RegistrarTiming(settle_s=0.0, leave_within_s=2.0)

_WILDCARDS = ("0.0.0.0", "::", "[::]", "")


def router_id(settings: RouterSettings) -> str:
    """The router's name in status, traces and logs."""
    return settings.router_id or f"router-{settings.zone}"


def advertised(settings: RouterSettings, port: int) -> str:
    """Where clients reach the router that listens on `port`: host:port."""
    host = settings.advertise_address
    if host.count(":") == 1 or "]:" in host:
        return host
    if not host:
        host = socket.gethostname() if settings.listen_host in _WILDCARDS else settings.listen_host
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


@asynccontextmanager
async def registered(
    registrar: Registrar, settings: RouterSettings, port: Callable[[], int]
) -> AsyncIterator[asyncio.Event]:
    """Registers the router from when the event is set, which says that it listens on `port`, until the block has ended.

    Once for each router, however many processes it has.
    """
    listening = asyncio.Event()

    async def register() -> None:
        await listening.wait()
        # Routers of one host may share an id; in Consul each is one record.
        registrar.announce(
            Endpoint(
                server=f"{router_id(settings)}-{port()}",
                address=advertised(settings, port()),
                zone=settings.zone,
                epoch=uuid.uuid4().hex,
                engine="",
                models=(),
            )
        )
        registrar.set_health(passing=True, note="")
        await registrar.run()

    try:
        async with asyncio.TaskGroup() as tasks:
            registering = tasks.create_task(register(), name="registration")
            try:
                yield listening
                await registrar.leave("drained")
            finally:
                registering.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        # One failure is told as itself: the caller knows what a port that cannot be had means.
        raise group.exceptions[0] from None
