"""Faults of the network: packets, lines, HTTP/2 connections."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.chaos.fault import Inject, Scene, Stage, victim
from tests.chaos.mesh import ZONES, ChaosMesh
from tests.chaos.preparing import fronted, tell_front

Act = Callable[[ChaosMesh, random.Random], str]
# RFC 9113 section 7: what middle boxes, servers under attack and proxies reset streams with.
_RESETS = {"INTERNAL_ERROR": 2, "REFUSED_STREAM": 7, "CANCEL": 8, "ENHANCE_YOUR_CALM": 11}


def drop(mesh: ChaosMesh, rng: random.Random) -> str:
    """A server's cable is out for a while."""
    server = victim(mesh, rng)
    mesh.drop(server, dropped=True)
    lasts_s = rng.uniform(3.0, 6.0)
    time.sleep(lasts_s)
    mesh.drop(server, dropped=False)
    return f"all packets of {server.name} dropped for {lasts_s:.1f} s"


def flap(mesh: ChaosMesh, rng: random.Random) -> str:
    """A server comes and goes."""
    server = victim(mesh, rng)
    for _ in range(2):
        mesh.drop(server, dropped=True)
        time.sleep(3.0)
        mesh.drop(server, dropped=False)
        time.sleep(2.0)
    return f"{server.name} cut off for 3 of 5 s, twice"


def line(lasts_s: float, **state: float) -> Act:
    """The line between the zones is worse for a while."""

    def inject(mesh: ChaosMesh, rng: random.Random) -> str:
        mesh.line(**state)
        time.sleep(lasts_s)
        mesh.line()
        return f"line {state} for {lasts_s:g} s"

    return inject


def one_way(mesh: ChaosMesh, rng: random.Random) -> str:
    """Packets pass in one direction only."""
    side = rng.choice(("loss_ab", "loss_ba"))
    return line(5.0, **{side: 1.0})(mesh, rng)


def behind_proxy(kind: str, act: Callable[[Scene, str], str]) -> Stage:
    """A `server` or `router` is reached through a proxy that understands HTTP/2, and `act` gets its name."""

    @contextmanager
    def stage(scene: Scene) -> Iterator[Inject]:
        mesh = scene.mesh
        process = scene.rng.choice(mesh.of("server")) if kind == "server" else mesh.router(scene.rng.choice(ZONES))
        with fronted(mesh, process):
            yield lambda: act(scene, process.name)

    return stage


def goaway(scene: Scene, name: str) -> str:
    """The peer takes no new streams on its connections, or gives up those that run as well."""
    how = scene.rng.choice(("goaway", "goaway-all"))
    tell_front(scene.mesh, name, how)
    meant = "no new streams" if how == "goaway" else "none of the running streams was processed"
    return f"GOAWAY on all connections of {name}: {meant}"


def reset(scene: Scene, name: str) -> str:
    """One stream of one connection is reset, towards both ends."""
    why = scene.rng.choice(sorted(_RESETS))
    tell_front(scene.mesh, name, f"reset {_RESETS[why]}")
    return f"RST_STREAM ({why}) on one stream of {name}"
