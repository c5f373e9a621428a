"""A router of several processes that share its port: the parent of them.

It starts them, registers the router once, and shows their metrics on one port. It takes no calls and never touches
grpc: what has threads must not be forked.
"""

import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from discovery import die_with_parent
from discovery.consul_client import ConsulClient
from discovery.consul_registrar import ConsulRegistrar
from discovery.router_record import ROUTER
from router.config import RouterSettings
from router.process_metrics import ProcessesCollector
from router.processes import Processes, ProcessRules
from router.registration import TIMING, registered
from stoker_common import metrics
from stoker_common.backoff import Backoff


async def serve_by_processes(settings: RouterSettings, count: int, flags: Sequence[str]) -> int:
    """Until SIGTERM or SIGINT; the exit status. `flags`: those that this process got. Raises OSError for ports."""
    rng = random.Random()
    with tempfile.TemporaryDirectory(prefix="stoker-router-") as folder, reserved(settings) as port:

        def command(number: int, descriptor: int) -> list[str]:
            launcher = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())]
            # The last of several flags that say the same counts.
            own = [f"--listen-port={port}", "--metrics-host=127.0.0.1"]
            own.append("--metrics-port=0" if settings.metrics_port >= 0 else "--metrics-port=-1")
            return [*launcher, sys.executable, "-m", "router.child", str(number), str(descriptor), *flags, *own]

        processes = Processes(
            count,
            command,
            # Counters live in files there, which outlive the process that counted.
            {**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder},
            ProcessRules(drain_s=settings.drain_seconds),
            lambda: Backoff(rng, 0.1, 10.0),
            time.monotonic,
        )
        scraped = None
        if settings.metrics_port >= 0:
            registry = CollectorRegistry()
            registry.register(ProcessesCollector(Path(folder), processes))
            scraped = metrics.serve(registry, settings.metrics_host, settings.metrics_port)
        try:
            async with ConsulClient(settings.consul_address) as consul:
                registrar = ConsulRegistrar(consul, rng=rng, timing=TIMING, form=ROUTER)

                def leave() -> None:
                    registrar.leaving("drains")
                    processes.stop()

                for number in (signal.SIGTERM, signal.SIGINT):
                    asyncio.get_running_loop().add_signal_handler(number, leave)
                async with registered(registrar, settings, lambda: port) as listening:
                    return await processes.run(listening)
        finally:
            if scraped is not None:
                scraped.close()


class reserved:
    """The port, held for the processes while none of them listens. A socket that is only bound gets no connections."""

    def __init__(self, settings: RouterSettings) -> None:
        self._host, self._port = settings.listen_host, settings.listen_port
        self._socket: socket.socket | None = None

    def __enter__(self) -> int:
        # Without sharing first: whoever else listens there, another router too, must not lose connections to us.
        alone = self._bound(share=False)
        port: int = alone.getsockname()[1]
        alone.close()
        self._port = port
        self._socket = self._bound(share=True)
        return port

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def _bound(self, *, share: bool) -> socket.socket:
        host = self._host.strip("[]")
        family = socket.getaddrinfo(host, self._port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if share else socket.SO_REUSEADDR, 1)
            bound.bind((host, self._port))
        except OSError as error:
            bound.close()
            where = f"{self._host}:{self._port}"
            text = f"cannot listen on {where} ({error.strerror}): is the port taken? Set listen_port to another"
            raise OSError(error.errno, text) from error
        return bound
