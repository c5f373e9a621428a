"""What can be seen of a mesh from outside: its metrics, its catalog, its logs."""

import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from discovery.codec import SERVICE
from tests.chaos.places import Place
from tests.chaos.processes import Process

HTTP_TIMEOUT_S = 5.0


class NotReady(Exception):
    """The mesh, or a part of it, did not come up, or back, in time."""


class Seen:
    """Looks at the processes, each from its own zone."""

    def __init__(self, processes: Mapping[str, Process], places: Mapping[str, Place]) -> None:
        self._processes = processes
        self._places = places

    def busy_servers(self) -> list[Process]:
        """The servers on which something runs, busiest first, as the routers count."""
        counts: Counter[str] = Counter()
        for router in self._of("router"):
            for name, labels, value in self.metrics(router):
                if name == "stoker_router_server_in_flight":
                    counts[labels["server"]] += int(value)
        return [self._processes[name] for name, count in counts.most_common() if count]

    def not_idle(self) -> str:
        """The counters of work in flight that are not at zero, in words; empty if all are."""
        wanted = {"stoker_router_in_flight", "stoker_router_server_in_flight", "stoker_server_in_flight"}
        wanted.add("stoker_router_server_booked_prompt_tokens")
        found: list[str] = []
        for process in (*self._of("router"), *self._of("server")):
            for name, labels, value in self.metrics(process):
                if name in wanted and value:
                    found.append(f"{process.name}: {name}{labels or ''} = {value:g}")
        return "; ".join(found)

    def metrics(self, process: Process) -> list[tuple[str, dict[str, str], float]]:
        """The process's metrics: name, labels, value. Empty if it does not answer."""
        text = self._get(process.zone, f"http://{process.host}:{process.metrics_port}/metrics")
        return [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        ]

    def leader(self, zone: str) -> Process:
        """The Consul server that leads its zone."""
        agents = self._of("consul", zone)
        for agent in agents:
            said = self._json(zone, f"http://{agent.address}/v1/status/leader")
            for other in agents:
                if said and said == f"{other.host}:{other.metrics_port}":
                    return other
        raise NotReady(f"no Consul server leads {zone}")

    def answers(self, zone: str) -> bool:
        """Whether the zone's Consul has a leader, and reaches the other zones'."""
        agent = self._of("consul", zone)[0]
        return all(
            self._json(zone, f"http://{agent.address}/v1/health/service/{SERVICE}?dc={each}") is not None
            for each in self._places
        )

    def registered(self) -> bool:
        """Whether every server is registered, passing, with its present epoch, and known to all routers."""
        epochs: dict[str, str] = {}
        for zone in self._places:
            agent = self._of("consul", zone)[-1]
            for entry in self._json(zone, f"http://{agent.address}/v1/health/service/{SERVICE}?passing") or ():
                epochs[entry["Service"]["ID"]] = entry["Service"]["Meta"]["epoch"]
        names = {server.name for server in self._of("server")}
        if epochs.keys() != names or any(epochs[name] != self._epoch(name) for name in names):
            return False
        for router in self._of("router"):
            known = [labels["server"] for name, labels, _ in self.metrics(router) if name.endswith("breaker_state")]
            # Three states each: a former life that is still there would count again.
            if Counter(known) != Counter({name: 3 for name in names}):
                return False
        return True

    def _epoch(self, server: str) -> str:
        """The epoch of the server's present life, from its log; empty until it is registered.

        A former life is in the catalog until its check expires: the log's last word alone may be of that one.
        """
        for line in reversed(self._processes[server].said().splitlines()):
            if '"registered"' in line:
                return str(json.loads(line).get("epoch", ""))
        return ""

    def _of(self, kind: str, zone: str = "") -> list[Process]:
        return [each for each in self._processes.values() if each.kind == kind and zone in ("", each.zone)]

    def _json(self, zone: str, url: str) -> Any:
        data = self._get(zone, url)
        try:
            return json.loads(data)
        except json.JSONDecodeError:
            return None

    def _get(self, zone: str, url: str) -> bytes:
        """What an address of the zone answers; empty if it does not."""

        def get() -> bytes:
            try:
                with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as response:
                    return bytes(response.read())
            except (OSError, urllib.error.HTTPError):
                return b""

        return self._places[zone].run(get)
