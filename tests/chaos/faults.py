"""The faults, numbered as in the reliability plan: what each does, what must hold, how long a silence it may cause."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.mesh import ZONES, ChaosMesh
from tests.chaos.processes import Process

# Budgets of the design, section 10: killed 1 s, frozen or cut off 3 s, plus the resume itself, which is a step or two
# of 200 ms and the wait for a place in a step.
KILLED_S = 1.0 + 1.0
CUT_S = 3.0 + 1.0
# No stream should notice: two steps, and a loop that is behind on two shared cores.
UNNOTICED_S = 1.0


@dataclass(frozen=True, slots=True)
class Fault:
    """`inject` acts on the mesh at the moment of the fault and returns what it did, in words.

    `reroutes`: clients may lose their router by it and go on through the other one. `skewed`: all streams come in
    through one zone, so that half of them cross to the other. `servers`: it also means something to plain gRPC without
    routers. `sdk`: clients use it instead of plain stubs. `gap_s` is the budget for the longest silence.
    """

    number: str
    name: str
    inject: Callable[[ChaosMesh, random.Random], str]
    gap_s: float
    namespaces: bool = False
    reroutes: bool = False
    skewed: bool = False
    servers: bool = False
    sdk: bool = False


def _victim(mesh: ChaosMesh, rng: random.Random) -> Process:
    """A server with streams."""
    return rng.choice(mesh.busy_servers() or mesh.of("server"))


def _kill(mesh: ChaosMesh, rng: random.Random) -> str:
    victim = _victim(mesh, rng)
    victim.kill()
    return f"SIGKILL {victim.name}"


def _freeze(mesh: ChaosMesh, rng: random.Random) -> str:
    victim = _victim(mesh, rng)
    victim.send(signal.SIGSTOP)
    return f"SIGSTOP {victim.name}"


def _engine(**faults: bool | float) -> Callable[[ChaosMesh, random.Random], str]:
    def inject(mesh: ChaosMesh, rng: random.Random) -> str:
        victim = _victim(mesh, rng)
        mesh.engine_faults(victim, **faults)
        return f"{victim.name}: {faults}"

    return inject


def _failing(mesh: ChaosMesh, rng: random.Random) -> str:
    return _engine(error_rate=rng.choice((0.3, 1.0)))(mesh, rng)


def _drain(mesh: ChaosMesh, rng: random.Random) -> str:
    victim = _victim(mesh, rng)
    victim.send(signal.SIGTERM)
    return f"SIGTERM {victim.name}"


def _drop(mesh: ChaosMesh, rng: random.Random) -> str:
    victim = _victim(mesh, rng)
    mesh.drop(victim, dropped=True)
    lasts_s = rng.uniform(3.0, 6.0)
    time.sleep(lasts_s)
    mesh.drop(victim, dropped=False)
    return f"all packets of {victim.name} dropped for {lasts_s:.1f} s"


def _flap(mesh: ChaosMesh, rng: random.Random) -> str:
    victim = _victim(mesh, rng)
    for _ in range(2):
        mesh.drop(victim, dropped=True)
        time.sleep(3.0)
        mesh.drop(victim, dropped=False)
        time.sleep(2.0)
    return f"{victim.name} cut off for 3 of 5 s, twice"


def _zone(mesh: ChaosMesh, rng: random.Random) -> str:
    zone = rng.choice(ZONES)
    for process in mesh.processes.values():
        if process.zone == zone:
            process.send(signal.SIGKILL)
    return f"SIGKILL everything in {zone}, Consul and router too"


def _line(lasts_s: float, **state: float) -> Callable[[ChaosMesh, random.Random], str]:
    def inject(mesh: ChaosMesh, rng: random.Random) -> str:
        mesh.line(**state)
        time.sleep(lasts_s)
        mesh.line()
        return f"line {state} for {lasts_s:g} s"

    return inject


def _one_way(mesh: ChaosMesh, rng: random.Random) -> str:
    side = rng.choice(("loss_ab", "loss_ba"))
    return _line(5.0, **{side: 1.0})(mesh, rng)


def _leader(mesh: ChaosMesh, rng: random.Random) -> str:
    leader = mesh.leader(ZONES[0])
    leader.kill()
    time.sleep(4.0)
    leader.start()
    return f"SIGKILL {leader.name}, back after 4 s"


def _quorum(mesh: ChaosMesh, rng: random.Random) -> str:
    agents = rng.sample(mesh.of("consul", ZONES[0]), 2)
    for agent in agents:
        agent.kill()
    return f"SIGKILL {' and '.join(agent.name for agent in agents)}: no quorum until the end"


def _agent(mesh: ChaosMesh, rng: random.Random) -> str:
    (agent,) = mesh.of("consul", ZONES[1])
    agent.kill()
    shutil.rmtree(mesh.folder / agent.name, ignore_errors=True)
    time.sleep(rng.uniform(0.0, 2.0))
    agent.start()
    return f"SIGKILL {agent.name}, back without its state"


def _lie(mode: str) -> Callable[[ChaosMesh, random.Random], str]:
    def inject(mesh: ChaosMesh, rng: random.Random) -> str:
        for zone in ZONES:
            mesh.lie(zone, mode)
        time.sleep(5.0)
        for zone in ZONES:
            mesh.lie(zone, "pass")
        return f"both routers' Consul: {mode} for 5 s"

    return inject


def _router(mesh: ChaosMesh, rng: random.Random) -> str:
    router = mesh.router(rng.choice(ZONES))
    router.kill()
    return f"SIGKILL {router.name}"


def _second(mesh: ChaosMesh, rng: random.Random) -> str:
    first = _victim(mesh, rng)
    second = rng.choice([each for each in mesh.of("server", first.zone) if each is not first])
    apart_s = rng.uniform(0.0, 0.6)
    first.kill()
    time.sleep(apart_s)
    second.kill()
    return f"SIGKILL {first.name}, {apart_s * 1000:.0f} ms later {second.name}"


def _restart(mesh: ChaosMesh, rng: random.Random) -> str:
    victim = _victim(mesh, rng)
    victim.kill()
    victim.start()
    return f"SIGKILL {victim.name}, started again at once on its port"


def _clients(mesh: ChaosMesh, rng: random.Random) -> str:
    victim = mesh.processes["vanishing"]
    victim.kill()
    return "SIGKILL a client with streams of its own"


def _block(mesh: ChaosMesh, rng: random.Random) -> str:
    router = mesh.router(rng.choice(ZONES))
    router.send(signal.SIGSTOP)
    time.sleep(2.0)
    router.send(signal.SIGCONT)
    return f"SIGSTOP {router.name} for 2 s"


def _nothing(mesh: ChaosMesh, rng: random.Random) -> str:
    return "nothing"


FAULTS = (
    Fault("0", "no fault", _nothing, UNNOTICED_S, servers=True),
    Fault("1", "server killed", _kill, KILLED_S, servers=True),
    Fault("2", "server frozen", _freeze, CUT_S, servers=True),
    Fault("3", "engine dead", _engine(dead=True), KILLED_S, servers=True),
    Fault("4", "engine stalls, health says OK", _engine(stall=True), CUT_S, servers=True),
    Fault("6", "a server fails 30 % or all of its new requests", _failing, UNNOTICED_S, servers=True),
    Fault("7", "server drained", _drain, KILLED_S, servers=True),
    Fault("10", "all packets to a server dropped", _drop, CUT_S, namespaces=True, servers=True),
    Fault("11", "one-way partition", _one_way, CUT_S, namespaces=True, reroutes=True, skewed=True, servers=True),
    Fault("12", "a whole zone with its Consul", _zone, KILLED_S, reroutes=True, servers=True),
    Fault("13", "WAN partition", _line(5.0, loss_ab=1, loss_ba=1), CUT_S, namespaces=True, skewed=True, servers=True),
    Fault(
        "14", "100 ± 20 ms and 5 % loss", _line(6.0, delay_ms=100, jitter_ms=20, loss_ab=0.05, loss_ba=0.05), CUT_S,
        namespaces=True, skewed=True, servers=True,
    ),
    Fault("15", "server flapping", _flap, CUT_S, namespaces=True, servers=True),
    Fault("16", "Consul leader killed", _leader, UNNOTICED_S),
    Fault("17", "Consul's quorum lost", _quorum, UNNOTICED_S),
    Fault("18", "agent killed and back empty", _agent, UNNOTICED_S),
    Fault("19", "Consul answers 500", _lie("error"), UNNOTICED_S),
    Fault("20", "Consul answers []", _lie("empty"), UNNOTICED_S),
    Fault("21", "Consul's index starts over", _lie("reset"), UNNOTICED_S),
    Fault("24", "router killed", _router, KILLED_S, reroutes=True),
    Fault("24-sdk", "router killed, clients with the SDK", _router, KILLED_S, reroutes=True, sdk=True),
    Fault("25", "second server dies during the resume", _second, KILLED_S, servers=True),
    Fault("27", "server restarted on its port", _restart, KILLED_S, servers=True),
    Fault("32", "client vanishes", _clients, UNNOTICED_S),
    Fault("33", "router's loop blocked for 2 s", _block, CUT_S),
)  # fmt: skip
BY_NUMBER = {fault.number: fault for fault in FAULTS}
