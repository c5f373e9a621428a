"""Keeps a router in Consul while it serves, so that clients find it."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from discovery.catalog import Registrar
from discovery.endpoint import Endpoint
from router.config import RouterSettings
from router.server import RouterServer

_WILDCARDS = ("0.0.0.0", "::", "[::]", "")


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
    registrar: Registrar, settings: RouterSettings, router_id: str, server: RouterServer
) -> AsyncIterator[asyncio.Event]:
    """Registers the router from when the event is set, which says that it listens, until the block has ended."""
    listening = asyncio.Event()

    async def register() -> None:
        await listening.wait()
        # Routers of one host may share an id; in Consul each is one record.
        registrar.announce(
            Endpoint(
                server=f"{router_id}-{server.port}",
                address=advertised(settings, server.port),
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
