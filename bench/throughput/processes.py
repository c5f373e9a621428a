"""Consul, servers, mocks and routers for a measurement, each a process of its own on this machine."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import grpc.aio

from bench.relay.systems import ROOT
from bench.throughput.load import Watched
from discovery.consul_agent import ConsulAgent, find_consul, free_ports, plan_agents, ready, stop_all
from stoker.v1 import router_pb2, router_pb2_grpc
from stoker_common.channel import client_options

ZONE = "zone-a"
_TICKET_KEY = "a key for a benchmark on one machine"
_STOP_S = 40.0
_LOG_BYTES = 4000


class Processes:
    """What was started, stopped together; and the agent of a Consul beside it."""

    def __init__(self, stack: ExitStack, folder: Path, consul: str) -> None:
        self._stack = stack
        self._folder = folder
        self._consul = consul
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def server(
        self,
        name: str,
        *flags: str,
        registered: bool,
        environment: Mapping[str, str] | None = None,
        module: Sequence[str] = ("model_server",),
    ) -> str:
        """A model server's address. It may still be loading. `module`: what is run, and what stands before flags."""
        (port,) = free_ports(1)
        where = ["--consul-address", self._consul, "--ticket-key", _TICKET_KEY] if registered else []
        common = ["--zone", ZONE, "--metrics-port", "-1", "--log-level", "warning", "--server-id", name]
        self._start(name, [*module, "--listen-port", str(port), *common, *where, *flags], environment)
        return f"127.0.0.1:{port}"

    def mock(self, name: str) -> str:
        """A mock server's address: it makes tokens at no cost to speak of."""
        (port,) = free_ports(1)
        flags = ["--port", str(port), "--consul", self._consul, "--name", name, "--http2", "stoker"]
        self._start(name, ["bench.relay.backend_grpc", *flags], None)
        return f"127.0.0.1:{port}"

    def router(self, name: str, *flags: str) -> str:
        """A router's address."""
        (port,) = free_ports(1)
        common = ["--zone", ZONE, "--metrics-port", "-1", "--log-level", "warning", "--consul-address", self._consul]
        key = ["--ticket-key", _TICKET_KEY]
        self._start(name, ["router", "--listen-port", str(port), *common, *key, *flags], None)
        return f"127.0.0.1:{port}"

    def pid(self, name: str) -> int:
        """Its process id."""
        return self._started[name].pid

    def watched(self, name: str) -> dict[str, Watched]:
        """To be watched, without its children."""
        return {name: Watched(self.pid(name))}

    async def routable(self, address: str, servers: int, within_s: float) -> None:
        """Wait until the router would choose so many servers. Raises RuntimeError if a process ended, TimeoutError."""
        async with grpc.aio.insecure_channel(address, options=client_options()) as channel, asyncio.timeout(within_s):
            stub = router_pb2_grpc.RouterServiceStub(channel)
            while True:
                self._all_live()
                try:
                    status = await stub.Status(router_pb2.StatusRequest(), timeout=1)
                except grpc.aio.AioRpcError:
                    status = router_pb2.StatusResponse()
                there = [each for zone in status.zones for each in zone.endpoints if not each.excluded_by]
                if len(there) >= servers:
                    return
                await asyncio.sleep(0.1)

    async def listens(self, address: str, within_s: float) -> None:
        """Wait until something listens there. Raises RuntimeError if a process ended, TimeoutError."""
        async with grpc.aio.insecure_channel(address, options=client_options()) as channel, asyncio.timeout(within_s):
            ready_now = asyncio.ensure_future(channel.channel_ready())
            while not ready_now.done():
                self._all_live()
                await asyncio.wait((ready_now,), timeout=0.2)

    def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None) -> None:
        with (self._folder / f"{name}.log").open("wb") as out:
            # A session of its own: who interrupts the benchmark leaves it to us to stop the rest in order.
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._started[name] = process
        self._stack.callback(self._stop, name)

    def _stop(self, name: str) -> None:
        process = self._started.pop(name)
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _all_live(self) -> None:
        for name, process in self._started.items():
            if process.poll() is not None:
                said = (self._folder / f"{name}.log").read_bytes()[-_LOG_BYTES:].decode(errors="replace")
                raise RuntimeError(f"{name} ended with {process.returncode} and said last:\n{said}")


@asynccontextmanager
async def processes(folder: Path) -> AsyncIterator[Processes]:
    """A Consul, and what is started beside it; stopped when the block ends. Logs go to the folder, which exists."""
    with ExitStack() as stack:
        (plan,) = plan_agents(find_consul(ROOT), (ZONE,))
        agent = ConsulAgent(plan, folder / "consul.log")
        agent.start()
        stack.callback(stop_all, [agent])
        await ready([agent])
        yield Processes(stack, folder, agent.config.http_address)
