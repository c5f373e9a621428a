"""A mesh on this machine: Consul, routers and vLLM servers, each a process of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import psutil

from bench.faults_vllm.proxy import Cuttable
from discovery.consul_agent import ConsulAgent, find_consul, free_ports, plan_agents, ready, stop_all
from stoker.v1 import router_pb2, router_pb2_grpc
from stoker_common.channel import client_options

ROOT = Path(__file__).resolve().parents[2]
_ZONE = "zone-a"


@dataclass(frozen=True)
class ServerKind:
    """How the servers are started: the model's folder, more flags, more environment variables.

    `cuttable`: behind a proxy whose connections can be cut, which costs every message a hop through this process.
    `gpus`: server number n has the GPU n modulo so many to itself or shared; 0: all see what this process sees.
    """

    model: Path
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    cuttable: bool = True
    gpus: int = 0


class Server:
    """A vLLM server, started again by us when it ended: a supervisor's part."""

    def __init__(self, name: str, consul: str, kind: ServerKind, folder: Path, number: int = 0) -> None:
        self.name = name
        port, front = free_ports(2)
        self.proxy = Cuttable(front, port)
        if not kind.cuttable:
            front = port
        own = {"CUDA_VISIBLE_DEVICES": str(number % kind.gpus)} if kind.gpus else {}
        self._command = [
            *(sys.executable, "-m", "model_server", "--engine", "vllm", "--model", str(kind.model)),
            *("--server-id", name, "--listen-port", str(port), "--advertise-address", f"127.0.0.1:{front}"),
            *("--consul-address", consul, "--zone", _ZONE, *kind.flags),
        ]
        self._environment = {**os.environ, **own, **(kind.environment or {})}
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """A new life, once the last one is over."""
        if self._process is not None:
            self._process.wait()
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=out, stderr=out, start_new_session=True
            )

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)

    def kill_engine(self) -> None:
        """SIGKILL to the processes that it started: the engine's."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        engine = [each for each in children if "resource_tracker" not in " ".join(each.cmdline())]
        if not engine:
            raise RuntimeError(f"{self.name} has no engine process to kill")
        for each in engine:
            each.kill()

    async def ended(self, within_s: float = 60.0) -> int:
        """Its exit status, once it has ended by itself. Raises TimeoutError."""
        assert self._process is not None
        async with asyncio.timeout(within_s):
            while (status := self._process.poll()) is None:  # noqa: ASYNC110 - a process
                await asyncio.sleep(0.01)
        return status

    def terminate(self) -> None:
        """SIGTERM."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        self.terminate()
        if self._process is not None:
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class RouterProcess:
    """A router, started again by us at the same address when it ended."""

    def __init__(self, name: str, consul: str, flags: Sequence[str], folder: Path) -> None:
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        self._command = [
            *(sys.executable, "-m", "router", "--zone", _ZONE, "--listen-port", str(port), "--metrics-port", "-1"),
            *("--router-id", name, "--consul-address", consul, *flags),
        ]
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """A new life, once the last one is over."""
        self.wait()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()

    def terminate(self) -> None:
        """SIGTERM."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        """Until it has ended, if it ever began."""
        if self._process is not None:
            self._process.wait()


@dataclass(frozen=True)
class Mesh:
    """A running mesh. `channel` is to the first router; `routers` are the addresses of all, by name."""

    channel: grpc.aio.Channel
    servers: Mapping[str, Server]
    routers: Mapping[str, str] = field(default_factory=dict)
    processes: Mapping[str, "RouterProcess"] = field(default_factory=dict)

    async def usable(self) -> frozenset[str]:
        """The servers that the router would choose. None while it does not answer."""
        stub = router_pb2_grpc.RouterServiceStub(self.channel)
        try:
            status = await stub.Status(router_pb2.StatusRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return frozenset()  # it is starting, or has no time
        there = [each for zone in status.zones for each in zone.endpoints]
        return frozenset(each.endpoint.server for each in there if not each.excluded_by)

    async def until_usable(self, count: int, within_s: float) -> None:
        """Wait until the router would choose so many servers. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while len(await self.usable()) < count:  # noqa: ASYNC110 - the router's word
                await asyncio.sleep(0.1)

    async def until_excluded(self, server: str, within_s: float = 30.0) -> float:
        """How many seconds from now until the router would not choose the server any more. Raises TimeoutError."""
        began_s = time.monotonic()
        async with asyncio.timeout(within_s):
            while server in await self.usable():  # noqa: ASYNC110 - the router's word
                await asyncio.sleep(0.005)
        return time.monotonic() - began_s


@asynccontextmanager
async def running(
    kind: ServerKind, names: Sequence[str], folder: Path, routers: Mapping[str, Sequence[str]] | None = None
) -> AsyncIterator[Mesh]:
    """A mesh, its servers perhaps still loading; ended when the block ends. Logs go to the folder.

    `routers`: their flags by name; by default there is one, `router`.
    """
    async with AsyncExitStack() as held:
        (plan,) = plan_agents(find_consul(ROOT), (_ZONE,))
        agent = ConsulAgent(plan, folder / "consul.log")
        agent.start()
        held.callback(stop_all, [agent])
        await ready([agent])
        consul = agent.config.http_address
        servers = {name: Server(name, consul, kind, folder, number) for number, name in enumerate(names)}
        for server in servers.values():
            if kind.cuttable:
                await held.enter_async_context(server.proxy.serving())
            server.start()
            held.callback(server.stop)
        for server in servers.values():
            held.callback(server.terminate)  # all at once, before each is waited for
        processes = {
            name: RouterProcess(name, consul, flags, folder) for name, flags in (routers or {"router": ()}).items()
        }
        for process in processes.values():
            process.start()
            held.callback(process.wait)
            held.callback(process.terminate)
        addresses = {name: process.address for name, process in processes.items()}
        first = next(iter(addresses.values()))
        channel = grpc.aio.insecure_channel(first, options=client_options())
        yield Mesh(await held.enter_async_context(channel), servers, addresses, processes)
