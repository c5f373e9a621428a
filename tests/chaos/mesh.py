"""Two zones of real processes: Consul, simulated servers, a router and its way to Consul; what can be done to them."""

import json
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from discovery.consul_agent import AgentConfig, AgentPorts, command, find_consul, free_ports
from tests.chaos import wan
from tests.chaos.places import Namespace, Place
from tests.chaos.processes import ROOT, Process
from tests.chaos.script import MODEL
from tests.chaos.seen import HTTP_TIMEOUT_S, NotReady, Seen

ZONES = ("zone-a", "zone-b")
READY_WITHIN_S = 90.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """How large. Consul's servers by zone: three survive the loss of one; a lone one keeps its state in memory."""

    servers_per_zone: int = 4
    consul_servers: tuple[int, int] = (3, 1)
    # 175 + a millisecond for each stream: 5 tokens/s where the streams are spread.
    step_base_ms: float = 175.0
    step_per_stream_ms: float = 1.0
    drain_s: float = 2.0
    stuck_after_s: float = 2.0


class ChaosMesh:
    """What runs, and what can be done to it; `seen` is how it looks. Processes by name."""

    def __init__(self, plan: MeshPlan, folder: Path, places: Sequence[Place], held: ExitStack) -> None:
        self.plan = plan
        self.folder = folder
        self.places = dict(zip(ZONES, places, strict=True))
        self.namespaces = isinstance(places[0], Namespace)
        self.processes: dict[str, Process] = {}
        self._control = folder / "wan.json"
        self._held = held
        self._ports = iter(free_ports(200))
        self.seen = Seen(self.processes, self.places)

    def start(self) -> None:
        """Start everything; returns when all are registered and both routers see them. Raises NotReady."""
        if self.namespaces:
            self._join()
        agents = self._agents()
        for zone in ZONES:
            mine = [agent for agent in agents if agent.zone == zone]
            for agent in mine:
                self._add_agent(agent, agents)
            self._add_zone(zone, [f"{self._zone_host(zone)}:{agent.ports.http}" for agent in mine])
        for process in self.of("consul"):
            process.start()
        for zone in ZONES:
            self.until(lambda zone=zone: self.seen.answers(zone), f"Consul of {zone} has a leader")  # type: ignore[misc]
        for process in self.processes.values():
            process.start()
        self.wait_ready()

    def of(self, kind: str, zone: str = "") -> list[Process]:
        """The processes of a kind: consul, proxy, server, router."""
        return [each for each in self.processes.values() if each.kind == kind and zone in ("", each.zone)]

    def router(self, zone: str) -> Process:
        """The zone's router."""
        return self.processes[f"router-{zone}"]

    def wait_ready(self) -> None:
        """Wait until every server is registered, passing, with its present epoch, and known to both routers.

        What ends meanwhile is started again: a server that a fault made leave may take seconds to be gone.
        """

        def ready() -> bool:
            self.restart_dead()
            return self.seen.registered()

        self.until(ready, "every server is registered and known to both routers")

    def restart_dead(self) -> None:
        """Start again what has ended, as a supervisor would; Consul first."""
        for process in sorted(self.processes.values(), key=lambda each: each.kind != "consul"):
            process.start()

    def engine_faults(self, server: Process, **faults: bool | float) -> None:
        """Put these faults, and no others, in force in a server's engine."""
        path = self._faults_file(server.name)
        if not faults:
            path.unlink(missing_ok=True)
            return
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(faults))
        fresh.replace(path)

    def lie(self, zone: str, mode: str) -> None:
        """What the zone's router hears from Consul: see consul_proxy."""
        (self.folder / f"{zone}.mode").write_text(mode)

    def proxy(self, zone: str) -> Process:
        """What the zone's router hears Consul through."""
        return self.processes[f"proxy-{zone}"]

    def put(self, zone: str, path: str, body: object = None) -> None:
        """PUT to an agent of the zone. Raises OSError where it does not answer well."""
        agent = self.of("consul", zone)[-1]
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://{agent.address}{path}", data=data, method="PUT")

        def put() -> None:
            urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S).close()

        self.places[zone].run(put)

    def free_port(self) -> int:
        """A port that nobody has had yet."""
        return next(self._ports)

    def line(self, **changes: float) -> None:
        """The state of the WAN; without arguments as it should be."""
        wan.write(self._control, wan.Wan(**changes))

    def drop(self, server: Process, *, dropped: bool) -> None:
        """Lose every packet from and to the server."""
        server.place.drop(server.host, dropped=dropped)

    def heal(self) -> None:
        """Take back what may still be in force, and start what has ended."""
        for process in self.processes.values():
            process.send(signal.SIGCONT)
        for server in self.of("server"):
            self.engine_faults(server)
        for zone in ZONES:
            self.lie(zone, "pass")
        if self.namespaces:
            self.line()
        self.restart_dead()

    def until(self, condition: Callable[[], bool], what: str, within_s: float = READY_WITHIN_S) -> None:
        """Poll until it holds. Raises NotReady."""
        ends_s = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > ends_s:
                raise NotReady(f"not within {within_s:g} s: {what}; logs are in {self.folder}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End every process."""
        for process in self.processes.values():
            process.kill()

    def _join(self) -> None:
        """The line between the zones."""
        self.line()
        ends = []
        for place in self.places.values():
            assert isinstance(place, Namespace)
            place.add_host(0)
            ends.append(place.open_line())
        argv = [sys.executable, "-m", "tests.chaos.wan", *map(str, ends), str(self._control)]
        # On the machine's own network: it needs none.
        place = Place()
        self._held.callback(place.close)
        line = Process("wan", "wan", "", place, argv, self.folder / "wan.log", pass_fds=tuple(ends))
        line.start()
        self.processes["wan"] = line

    def _agents(self) -> list[AgentConfig]:
        """All Consul servers."""
        agents = []
        for zone, count in zip(ZONES, self.plan.consul_servers, strict=True):
            ports = [AgentPorts(*(next(self._ports) for _ in range(4))) for _ in range(count)]
            for place, own in enumerate(ports):
                node = f"consul-{zone}-{place + 1}"
                join = tuple(each.serf_lan for each in ports if each is not own)
                data = self.folder / node if count > 1 else None
                agents.append(AgentConfig(find_consul(ROOT), zone, node, own, data, count, join))
        return agents

    def _add_agent(self, agent: AgentConfig, agents: Sequence[AgentConfig]) -> None:
        host = self._zone_host(agent.zone)
        argv = [part.replace("127.0.0.1", host) for part in command(agent)]
        others = [other for other in agents if other.zone != agent.zone]
        argv += [f"-retry-join-wan={self._zone_host(other.zone)}:{other.ports.serf_wan}" for other in others]
        if agent.data_dir is not None:
            agent.data_dir.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{agent.node}.log"
        place, ports = self.places[agent.zone], agent.ports
        self.processes[agent.node] = Process(
            agent.node, "consul", agent.zone, place, argv, log, host, ports.http, ports.server
        )

    def _add_zone(self, zone: str, consul: Sequence[str]) -> None:
        host = self._zone_host(zone)
        self.lie(zone, "pass")
        proxy = self._add("proxy", f"proxy-{zone}", zone, host, [])
        mode = str(self.folder / f"{zone}.mode")
        proxy.argv = [sys.executable, "-m", "tests.chaos.consul_proxy", host, str(proxy.port), consul[0], mode]
        for number in range(self.plan.servers_per_zone):
            self._add_server(zone, number, consul[number % len(consul)])
        options = ["--router-id", f"router-{zone}", "--consul-address", proxy.address, "--drain-seconds", "5"]
        self._add("router", f"router-{zone}", zone, host, options)

    def _add_server(self, zone: str, number: int, consul: str) -> None:
        name, plan = f"{zone}-{number}", self.plan
        place = self.places[zone]
        host = place.host(10 + number)
        if isinstance(place, Namespace):
            place.add_host(10 + number)
        options = ["--server-id", name, "--engine", "sim", "--model", MODEL, "--consul-address", consul]
        options += ["--drain-seconds", f"{plan.drain_s:g}", "--stuck-after-seconds", f"{plan.stuck_after_s:g}"]
        options += ["--sim-load-ms", "0", "--sim-step-base-ms", f"{plan.step_base_ms:g}"]
        options += ["--sim-step-per-stream-ms", f"{plan.step_per_stream_ms:g}"]
        options += ["--sim-faults-file", str(self._faults_file(name))]
        self._add("server", name, zone, host, options)

    def _add(self, kind: str, name: str, zone: str, host: str, options: Sequence[str]) -> Process:
        port, metrics = next(self._ports), next(self._ports)
        module = {"server": "model_server", "router": "router", "proxy": "none"}[kind]
        argv = [sys.executable, "-m", module, "--zone", zone, "--listen-host", host, "--listen-port", str(port)]
        argv += ["--metrics-host", host, "--metrics-port", str(metrics), *options]
        log = self.folder / f"{name}.log"
        made = Process(name, kind, zone, self.places[zone], argv, log, host, port, metrics)
        self.processes[name] = made
        return made

    def _zone_host(self, zone: str) -> str:
        return self.places[zone].host(0)

    def _faults_file(self, server: str) -> Path:
        return self.folder / f"{server}.faults.json"


@contextmanager
def running(plan: MeshPlan, folder: Path, *, namespaces: bool) -> Iterator[ChaosMesh]:
    """A mesh, ready. All its processes have ended when the block has."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        places: list[Place] = [Namespace(1), Namespace(2)] if namespaces else [Place(), Place()]
        for place in places:
            held.callback(place.close)
        mesh = ChaosMesh(plan, folder, places, held)
        held.callback(mesh.stop)
        mesh.start()
        yield mesh
