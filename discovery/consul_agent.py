"""Local Consul agents: their command lines, starting and stopping them, and when they are ready.

For `stoker up` and for tests. Restarting what died is the caller's business.
"""

import asyncio
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from discovery import die_with_parent
from discovery.codec import SERVICE
from discovery.consul_client import ConsulClient
from discovery.errors import CatalogError, DiscoveryError

_HOST = "127.0.0.1"
# Below what systems give out by themselves, to listeners on port 0 and to connections; in parts, one for a process.
_FREE_PORTS, _PARTS = range(10_000, 20_000), 16


class ConsulAgentError(DiscoveryError):
    """An agent that cannot be found, did not start or did not get ready; says what to do about it."""

    reason = "CONSUL_AGENT"


@dataclass(frozen=True, slots=True)
class AgentPorts:
    """Ports on 127.0.0.1. The serf ports are both TCP and UDP."""

    http: int
    server: int
    serf_lan: int
    serf_wan: int


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One server agent. `data_dir` None keeps its state in memory (`-dev`), for a lone server: it is up sooner.

    `servers` is how many its datacenter has; `join_lan` and `join_wan` are the ports of others to join.
    """

    binary: Path
    zone: str
    node: str
    ports: AgentPorts
    data_dir: Path | None = None
    servers: int = 1
    join_lan: tuple[int, ...] = ()
    join_wan: tuple[int, ...] = ()

    @property
    def http_address(self) -> str:
        """host:port of its HTTP API."""
        return f"{_HOST}:{self.ports.http}"


def find_consul(root: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """$CONSUL_BIN, else the one on PATH, else ROOT/.cache/bin/consul. Raises ConsulAgentError."""
    named = environ.get("CONSUL_BIN")
    if named:
        if not os.access(named, os.X_OK):
            raise ConsulAgentError(f"CONSUL_BIN={named} is no program that can be run; correct or unset it")
        return Path(named).resolve()
    on_path = shutil.which("consul", path=environ.get("PATH", ""))
    cached = root / ".cache" / "bin" / "consul"
    if on_path:
        return Path(on_path)
    if os.access(cached, os.X_OK):
        return cached.resolve()
    raise ConsulAgentError("no consul found; install Consul (any 1.8+) and put it on PATH or set CONSUL_BIN")


def plan_agents(
    binary: Path,
    zones: Sequence[str],
    *,
    servers: int = 1,
    data_root: Path | None = None,
    ports: Sequence[int] | None = None,
) -> tuple[AgentConfig, ...]:
    """`servers` (1 or 3) agents for each zone, joined to each other; a zone's agents are named `consul-ZONE[-N]`.

    `ports`: four an agent, free ones by default. `data_root` is where each keeps its folder; None keeps state in
    memory, for one server a zone only. Raises ValueError.
    """
    if servers not in (1, 3):
        raise ValueError(f"{servers} servers a datacenter: 1, or 3 to survive the loss of one")
    if servers > 1 and data_root is None:
        raise ValueError("state in memory is for one server a datacenter; name a data_root")
    count = len(zones) * servers
    numbers = list(ports) if ports is not None else free_ports(4 * count)
    if len(numbers) != 4 * count:
        raise ValueError(f"{len(numbers)} ports for {count} agents: four each, HTTP, server, serf LAN, serf WAN")
    all_ports = [AgentPorts(*numbers[start : start + 4]) for start in range(0, len(numbers), 4)]
    by_zone = {zone: all_ports[place * servers : (place + 1) * servers] for place, zone in enumerate(zones)}

    def configs() -> Iterator[AgentConfig]:
        for zone, mine in by_zone.items():
            for place, own in enumerate(mine):
                node = f"consul-{zone}" if servers == 1 else f"consul-{zone}-{place + 1}"
                yield AgentConfig(
                    binary,
                    zone,
                    node,
                    own,
                    data_root / node if data_root else None,
                    servers,
                    tuple(other.serf_lan for other in mine if other is not own),
                    tuple(other.serf_wan for name in zones if name != zone for other in by_zone[name]),
                )

    return tuple(configs())


def command(config: AgentConfig) -> list[str]:
    """The agent's command line, to be run as it is."""
    ports = config.ports
    # raft_multiplier 1: production's timings; the default of 5 is for small machines and elects in 5 to 10 s.
    # The update check calls out to the internet.
    mode = (
        ["-dev", "-hcl=connect { enabled = false }"]
        if config.data_dir is None
        else ["-server", f"-bootstrap-expect={config.servers}", f"-data-dir={config.data_dir}"]
    )
    return [
        str(config.binary),
        "agent",
        *mode,
        f"-datacenter={config.zone}",
        f"-node={config.node}",
        f"-bind={_HOST}",
        f"-client={_HOST}",
        f"-http-port={ports.http}",
        f"-server-port={ports.server}",
        f"-serf-lan-port={ports.serf_lan}",
        f"-serf-wan-port={ports.serf_wan}",
        "-dns-port=-1",
        "-grpc-port=-1",
        *(f"-retry-join={_HOST}:{port}" for port in config.join_lan),
        *(f"-retry-join-wan={_HOST}:{port}" for port in config.join_wan),
        "-retry-interval=1s",
        "-retry-interval-wan=1s",
        "-disable-host-node-id",
        "-log-level=warn",
        "-hcl=performance { raft_multiplier = 1 }",
        "-hcl=disable_update_check = true",
    ]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 free for TCP and UDP a moment ago; all different.

    Whoever gets one may take a minute to listen on it. So they are none that the system gives out to others meanwhile,
    and of a part of the rest that is likely this process's own. Raises OSError if there are not as many.
    """
    first = _FREE_PORTS.start + os.getpid() % _PARTS * (len(_FREE_PORTS) // _PARTS)
    candidates = range(first, first + len(_FREE_PORTS) // _PARTS)
    found: list[int] = []
    with ExitStack() as held:
        for port in random.sample(candidates, len(candidates)):
            if len(found) == count:
                break
            try:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    held.enter_context(socket.socket(type=kind)).bind((_HOST, port))
            except OSError:
                continue
            found.append(port)
    if len(found) < count:
        raise OSError(f"no {count} ports are free among {candidates.start} to {candidates.stop - 1}")
    return found


class ConsulAgent:
    """One agent's process. It dies with the process that started it."""

    def __init__(self, config: AgentConfig, log_file: Path) -> None:
        self.config = config
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process's id, None if it was not started."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; its output is appended to the log file. Returns at once: see `ready`."""
        if self.running:
            return
        if self.config.data_dir is not None:
            self.config.data_dir.mkdir(parents=True, exist_ok=True)
        launcher = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())]
        with self._log_file.open("ab") as output:
            # A session of its own: Ctrl-C is for the one who stops it.
            self._process = subprocess.Popen(
                [*launcher, *command(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        if self._process is not None:
            self._process.terminate()

    def stop(self, within_s: float = 5.0) -> None:
        """SIGTERM, and SIGKILL after `within_s`. Blocks until it has ended. (Consul exits with 1 on SIGTERM.)"""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def log_tail(self) -> str:
        """The last lines of its log, for an error message."""
        try:
            lines = self._log_file.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return " | ".join(line.strip() for line in lines[-3:])


def stop_all(agents: Sequence[ConsulAgent]) -> None:
    """Stop them side by side: each takes half a second or more."""
    for agent in agents:
        agent.terminate()
    for agent in agents:
        agent.stop()


async def ready(agents: Sequence[ConsulAgent], within_s: float = 15.0) -> None:
    """Wait until every agent answers for every zone with a known leader. Raises ConsulAgentError if one does not."""
    zones = sorted({agent.config.zone for agent in agents})
    try:
        async with asyncio.timeout(within_s):
            for agent in agents:
                await _ready(agent, zones)
    except TimeoutError as error:
        nodes = ", ".join(agent.config.node for agent in agents)
        tail = next((agent.log_tail() for agent in agents if agent.log_tail()), "no log")
        raise ConsulAgentError(f"{nodes}: not ready within {within_s:g} s; last in a log: {tail}") from error


async def _ready(agent: ConsulAgent, zones: Sequence[str]) -> None:
    started_at_s = time.monotonic()
    async with ConsulClient(agent.config.http_address, environ={}) as client:
        for zone in zones:
            while not await _answers(client, zone):
                if not agent.running:
                    took_s = time.monotonic() - started_at_s
                    raise ConsulAgentError(f"{agent.config.node} ended after {took_s:.1f} s: {agent.log_tail()}")
                await asyncio.sleep(0.05)


async def _answers(client: ConsulClient, zone: str) -> bool:
    try:
        return (await client.services(SERVICE, zone, 0, 0.0)).known_leader
    except CatalogError:
        return False
