"""What a local mesh consists of: its processes, their command lines and their ports. Pure: nothing is started here."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from discovery import consul_agent
from stoker_client.mesh.config import CONSUL_AT, CONSUL_PORTS, SERVERS_AT, ZONE_PORTS, MeshSettings
from stoker_client.mesh.ports import Port
from stoker_client.mesh.state import Kind

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """One process: its name is its id everywhere (in Consul, in logs, on screen)."""

    name: str
    kind: Kind
    zone: str
    argv: tuple[str, ...]
    address: str
    ports: tuple[Port, ...]
    metrics_address: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """The whole mesh."""

    engine: str
    model: str
    processes: tuple[ProcessPlan, ...]

    @property
    def ports(self) -> tuple[Port, ...]:
        """Every port that is needed."""
        return tuple(port for process in self.processes for port in process.ports)


def plan(settings: MeshSettings, model: str, consul: Path) -> MeshPlan:
    """The mesh that `settings` ask for. `model`: empty for the engine's own; `consul`: its program."""
    zones = tuple(f"zone-{chr(ord('a') + index)}" for index in range(settings.zones))
    numbers = range(settings.servers_per_zone)
    agents = _agents(settings, zones, consul)
    processes = [agent for zone in agents for agent in zone]
    for index, zone in enumerate(zones):
        processes += [_server(settings, model, index, zone, number, agents[index]) for number in numbers]
    processes += [_router(settings, index, zone, agents[index][0].address) for index, zone in enumerate(zones)]
    return MeshPlan(settings.engine, model, tuple(processes))


def _agents(settings: MeshSettings, zones: Sequence[str], consul: Path) -> list[list[ProcessPlan]]:
    """Each zone's Consul servers."""
    ports = [
        settings.port_base + index * ZONE_PORTS + CONSUL_AT + place
        for index in range(len(zones))
        for place in range(settings.consul_servers * CONSUL_PORTS)
    ]
    data = settings.run_folder / "consul"
    configs = consul_agent.plan_agents(consul, zones, servers=settings.consul_servers, data_root=data, ports=ports)
    return [[_agent(config) for config in configs if config.zone == zone] for zone in zones]


def _agent(config: consul_agent.AgentConfig) -> ProcessPlan:
    name, ports = config.node, config.ports
    tcp = (Port(ports.http, name), Port(ports.server, name))
    gossip = (Port(ports.serf_lan, name, udp=True), Port(ports.serf_wan, name, udp=True))
    argv = tuple(consul_agent.command(config))
    return ProcessPlan(name, Kind.CONSUL, config.zone, argv, config.http_address, tcp + gossip)


def _server(
    settings: MeshSettings, model: str, index: int, zone: str, number: int, agents: Sequence[ProcessPlan]
) -> ProcessPlan:
    """A model server. The zone's servers are spread over its Consul servers."""
    name = f"server-{zone}-{number + 1}"
    port = settings.port_base + index * ZONE_PORTS + SERVERS_AT + 2 * number
    consul = agents[number % len(agents)].address
    argv = [*_ours("model_server", zone, port, consul), "--server-id", name, "--engine", settings.engine]
    argv += ["--drain-seconds", str(settings.drain_s)]
    if model:
        argv += ["--model", model]
    if settings.adapters:
        argv += ["--adapters", ",".join(settings.adapters)]
    return _process(name, Kind.SERVER, zone, argv, port)


def _router(settings: MeshSettings, index: int, zone: str, consul: str) -> ProcessPlan:
    name = f"router-{zone}"
    port = settings.port_base + index * ZONE_PORTS
    argv = [*_ours("router", zone, port, consul), "--router-id", name, "--drain-seconds", str(settings.drain_s)]
    argv += ["--processes", str(settings.router_processes)]
    return _process(name, Kind.ROUTER, zone, argv, port)


def _ours(module: str, zone: str, port: int, consul: str) -> list[str]:
    argv = [sys.executable, "-m", module, "--zone", zone, "--listen-host", HOST, "--listen-port", str(port)]
    return [*argv, "--metrics-port", str(port + 1), "--consul-address", consul]


def _process(name: str, kind: Kind, zone: str, argv: Sequence[str], port: int) -> ProcessPlan:
    ports = (Port(port, name), Port(port + 1, f"{name}'s metrics"))
    # Byte code that is not kept costs a second at every start, and vLLM ten.
    environ = {"PYTHONDONTWRITEBYTECODE": ""}
    return ProcessPlan(name, kind, zone, tuple(argv), f"{HOST}:{port}", ports, f"{HOST}:{port + 1}", environ)
