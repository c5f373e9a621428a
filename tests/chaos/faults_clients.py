"""Faults of clients: gone without a word, not reading, too many."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.chaos.clients import client
from tests.chaos.fault import Inject, Scene
from tests.chaos.mesh import ZONES
from tests.chaos.preparing import restarted

_STREAMS = 40
# An unread answer of eight choices with logprobs fills a window of HTTP/2 within seconds.
_UNREAD_STREAMS = 6


@contextmanager
def vanishing(scene: Scene) -> Iterator[Inject]:
    """A client with streams of its own is killed."""
    gone = client(scene, "vanishing", ZONES[0], _STREAMS)
    gone.process.start()

    def inject() -> str:
        gone.process.kill()
        return "SIGKILL a client with streams of its own"

    try:
        yield inject
    finally:
        gone.process.kill()


@contextmanager
def unread(scene: Scene) -> Iterator[Inject]:
    """A client reads the first part of each answer and no more; another one stops altogether."""
    with ExitStack() as held:
        deaf = client(scene, "deaf", ZONES[0], _UNREAD_STREAMS, "--unread")
        still = client(scene, "still", ZONES[1], _STREAMS)
        for each in (deaf, still):
            held.callback(each.process.kill)
        still.process.start()

        def inject() -> str:
            deaf.process.start()
            still.process.send(signal.SIGSTOP)
            return f"a client with {_UNREAD_STREAMS} large answers reads no more, one with {_STREAMS} streams stops"

        yield inject


@contextmanager
def crowd(scene: Scene) -> Iterator[Inject]:
    """Three times as much is asked as the servers have places for, for longer than a stream lasts."""
    mesh = scene.mesh
    servers, routers = mesh.of("server"), mesh.of("router")
    places = max(2, scene.streams // len(servers))
    waiting = max(2, scene.streams // 6)
    changed = [(server, ["--sim-max-streams", str(places)]) for server in servers]
    changed += [(router, ["--queue-length", str(waiting)]) for router in routers]
    with restarted(mesh, changed):
        yield lambda: f"{len(servers)} servers of {places} places, {waiting} may wait in each router"
