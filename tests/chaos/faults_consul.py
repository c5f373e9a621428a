"""Faults of Consul: its servers, its answers, its load."""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from discovery.codec import SERVICE, encode
from discovery.endpoint import Endpoint, ModelState, Residency
from tests.chaos.fault import Inject, Scene
from tests.chaos.mesh import ZONES, ChaosMesh
from tests.chaos.preparing import restarted

_STORM_SERVERS = 100
_STORM_S = 6.0
# Longer than a TTL of 10 s: Consul calls every server critical meanwhile.
_DENIED_S = 14.0


def leader(mesh: ChaosMesh, rng: random.Random) -> str:
    """A zone's Consul has to elect another leader."""
    killed = mesh.seen.leader(ZONES[0])
    killed.kill()
    time.sleep(4.0)
    killed.start()
    return f"SIGKILL {killed.name}, back after 4 s"


def quorum(mesh: ChaosMesh, rng: random.Random) -> str:
    """A zone's Consul cannot write any more."""
    agents = rng.sample(mesh.of("consul", ZONES[0]), 2)
    for agent in agents:
        agent.kill()
    return f"SIGKILL {' and '.join(agent.name for agent in agents)}: no quorum until the end"


def agent(mesh: ChaosMesh, rng: random.Random) -> str:
    """A zone's Consul forgets everything."""
    (killed,) = mesh.of("consul", ZONES[1])
    killed.kill()
    shutil.rmtree(mesh.folder / killed.name, ignore_errors=True)
    time.sleep(rng.uniform(0.0, 2.0))
    killed.start()
    return f"SIGKILL {killed.name}, back without its state"


def lie(mode: str) -> Callable[[ChaosMesh, random.Random], str]:
    """What Consul answers is wrong for a while."""

    def inject(mesh: ChaosMesh, rng: random.Random) -> str:
        for zone in ZONES:
            mesh.lie(zone, mode)
        time.sleep(5.0)
        for zone in ZONES:
            mesh.lie(zone, "pass")
        return f"both routers' Consul: {mode} for 5 s"

    return inject


@contextmanager
def revoked(scene: Scene) -> Iterator[Inject]:
    """Everybody's token is revoked: routers may not read, servers may not keep their checks alive."""
    mesh = scene.mesh

    def inject() -> str:
        for zone in ZONES:
            mesh.lie(zone, "denied")
        time.sleep(_DENIED_S)
        for zone in ZONES:
            mesh.lie(zone, "pass")
        return f"403 for all routers and servers for {_DENIED_S:g} s"

    with restarted(mesh, [(each, ["--consul-address", mesh.proxy(each.zone).address]) for each in mesh.of("server")]):
        yield inject


def storm(mesh: ChaosMesh, rng: random.Random) -> str:
    """A fleet registers at once, changes what it says as fast as Consul takes it, and is gone."""
    zone = rng.choice(ZONES)
    writes = 0
    ends_s = time.monotonic() + _STORM_S
    # Nobody listens there: the routers try for a link to each.
    port = mesh.free_port()
    while time.monotonic() < ends_s:
        for number in range(_STORM_SERVERS):
            mesh.put(zone, "/v1/agent/service/register", _stray(mesh, zone, number, port, writes // _STORM_SERVERS))
            writes += 1
    for number in range(_STORM_SERVERS):
        mesh.put(zone, f"/v1/agent/service/deregister/stray-{number}")
    return f"{_STORM_SERVERS} more servers in {zone}, registered {writes} times in {_STORM_S:g} s, then gone"


def _stray(mesh: ChaosMesh, zone: str, number: int, port: int, life: int) -> dict[str, object]:
    """A record as a server would write it."""
    record = encode(
        Endpoint(
            server=f"stray-{number}",
            address=f"{mesh.router(zone).host}:{port}",
            zone=zone,
            epoch=f"{number}-{life}",
            engine="sim",
            models=(ModelState("stray-model", Residency.HOT, 4096),),
            link_version=1,
        )
    )
    return {
        "Name": SERVICE,
        "ID": record.service_id,
        "Address": record.address,
        "Port": record.port,
        "Tags": list(record.tags),
        "Meta": dict(record.meta),
    }
