"""`python -m router.child NUMBER FD FLAG...`: one of a router's processes. Started by `router.parent` alone.

It shares the router's port, is registered by its parent, and tells it on the descriptor FD, once, that it listens and
where its metrics are.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from discovery.consul_client import ConsulClient
from router.config import RouterSettings
from router.process import Place, serve
from router.registration import router_id
from router.server import RouterServer
from stoker_common import event_loop, logs
from stoker_common.metrics import MetricsServer
from stoker_common.settings import load


async def serve_for_parent(settings: RouterSettings, number: int, descriptor: int) -> None:
    """Until SIGTERM. Raises OSError for ports that cannot be had."""

    @asynccontextmanager
    async def announce(
        consul: ConsulClient, server: RouterServer, scraped: MetricsServer | None
    ) -> AsyncIterator[asyncio.Event]:
        listening = asyncio.Event()

        async def tell() -> None:
            await listening.wait()
            said = {"port": server.port, "metrics_port": scraped.port if scraped is not None else -1}
            os.write(descriptor, json.dumps(said).encode() + b"\n")
            os.close(descriptor)

        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(tell(), name="report to parent")
            yield listening
            telling.cancel()

    await serve(settings, Place(f"{router_id(settings)}/{number}", share_port=True), announce, lambda: None)


def main() -> int:
    """The process's exit status."""
    number, descriptor, flags = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    settings = load(RouterSettings, "router", flags)
    logs.configure(settings.log_level, f"router/{number}", sys.stdout)
    try:
        event_loop.run(serve_for_parent(settings, number, descriptor))
    except OSError as error:
        sys.stderr.write(f"router/{number}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
