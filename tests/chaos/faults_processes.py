"""Faults of processes: servers, their engines, routers, a whole zone, one after another or at once."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from tests.chaos.fault import victim
from tests.chaos.mesh import ZONES, ChaosMesh
from tests.chaos.processes import ROOT, Process

# A server drains for 2 s, tells Consul and waits 1.5 s for it to spread.
_LEAVES_WITHIN_S = 30.0

Act = Callable[[ChaosMesh, random.Random], str]


def nothing(mesh: ChaosMesh, rng: random.Random) -> str:
    """No fault."""
    return "nothing"


def kill(mesh: ChaosMesh, rng: random.Random) -> str:
    """A server dies."""
    server = victim(mesh, rng)
    server.kill()
    return f"SIGKILL {server.name}"


def freeze(mesh: ChaosMesh, rng: random.Random) -> str:
    """A server stops, and its connections stay."""
    server = victim(mesh, rng)
    server.send(signal.SIGSTOP)
    return f"SIGSTOP {server.name}"


def engine(**faults: bool | float) -> Act:
    """A simulated engine's own faults."""

    def inject(mesh: ChaosMesh, rng: random.Random) -> str:
        server = victim(mesh, rng)
        mesh.engine_faults(server, **faults)
        return f"{server.name}: {faults}"

    return inject


def failing(mesh: ChaosMesh, rng: random.Random) -> str:
    """A server that fails what is asked of it."""
    return engine(error_rate=rng.choice((0.3, 1.0)))(mesh, rng)


def drain(mesh: ChaosMesh, rng: random.Random) -> str:
    """A server is asked to leave."""
    server = victim(mesh, rng)
    server.send(signal.SIGTERM)
    return f"SIGTERM {server.name}"


def roll(mesh: ChaosMesh, rng: random.Random) -> str:
    """Every server leaves in turn, by SIGTERM or `stoker drain`, and the next one when it is back."""
    servers = mesh.of("server")
    rng.shuffle(servers)
    drained = 0
    for server in servers:
        if rng.random() < 0.5:
            _stoker_drain(mesh, server)
            drained += 1
        else:
            server.send(signal.SIGTERM)
        code = server.wait(_LEAVES_WITHIN_S)
        if code != 0:
            raise RuntimeError(f"{server.name} left with {code}: see {server.log}")
        server.start()
        mesh.wait_ready()
    return f"all {len(servers)} servers restarted in turn, {drained} by `stoker drain`"


def _stoker_drain(mesh: ChaosMesh, server: Process) -> None:
    argv = [sys.executable, "-m", "stoker_client", "drain", server.name, "--router", mesh.router(server.zone).address]
    done = server.place.run(
        lambda: subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=_LEAVES_WITHIN_S, check=False)
    )
    if done.returncode != 0:
        raise RuntimeError(f"stoker drain {server.name} failed: {done.stdout} {done.stderr}")


def zone(mesh: ChaosMesh, rng: random.Random) -> str:
    """A zone is gone."""
    lost = rng.choice(ZONES)
    for process in mesh.processes.values():
        if process.zone == lost:
            process.send(signal.SIGKILL)
    return f"SIGKILL everything in {lost}, Consul and router too"


def router(mesh: ChaosMesh, rng: random.Random) -> str:
    """A router dies."""
    lost = mesh.router(rng.choice(ZONES))
    lost.kill()
    return f"SIGKILL {lost.name}"


def second(mesh: ChaosMesh, rng: random.Random) -> str:
    """The server dies that streams have just gone to."""
    first = victim(mesh, rng)
    then = rng.choice([each for each in mesh.of("server", first.zone) if each is not first])
    apart_s = rng.uniform(0.0, 0.6)
    first.kill()
    time.sleep(apart_s)
    then.kill()
    return f"SIGKILL {first.name}, {apart_s * 1000:.0f} ms later {then.name}"


def restart(mesh: ChaosMesh, rng: random.Random) -> str:
    """A server has another life, on its port."""
    server = victim(mesh, rng)
    server.kill()
    server.start()
    return f"SIGKILL {server.name}, started again at once on its port"


def block(mesh: ChaosMesh, rng: random.Random) -> str:
    """A router's loop stands still for a while."""
    blocked = mesh.router(rng.choice(ZONES))
    blocked.send(signal.SIGSTOP)
    time.sleep(2.0)
    blocked.send(signal.SIGCONT)
    return f"SIGSTOP {blocked.name} for 2 s"
