"""The supervisor with processes that do as a test says: real processes, no mesh."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from stoker_client.mesh import identity, state
from stoker_client.mesh.identity import Identity
from stoker_client.mesh.plan import MeshPlan, ProcessPlan
from stoker_client.mesh.readiness import Probe
from stoker_client.mesh.restarts import RestartPolicy
from stoker_client.mesh.state import Kind, MeshState, Phase
from stoker_client.mesh.supervisor import Limits, Supervisor

pytestmark = pytest.mark.integration

RESTARTS = RestartPolicy(max_failures=3, window_s=60.0, first_s=0.05, most_s=0.1)
# Says that it is there, and when it was asked to end.
GOOD = (
    "import pathlib, signal, sys\n"
    "name, folder = sys.argv[1], pathlib.Path(sys.argv[2])\n"
    "def end(*_):\n"
    "    with open(folder / 'ends', 'a') as ends: ends.write(name + '\\n')\n"
    "    sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, end)\n"
    "(folder / name).touch()\n"
    "while True: signal.pause()\n"
)
STUBBORN = GOOD.replace("sys.exit(0)", "pass")
BROKEN = "import sys; print('cannot find my model'); sys.exit(3)"
WRONG = "import sys; print('no such key: zonez'); sys.exit(2)"
SILENT = "import signal\nwhile True: signal.pause()"


class Mesh:
    """A supervised mesh in a folder, and what a test needs to watch and end it."""

    def __init__(self, folder: Path, programs: dict[str, str], *, ready_s: float = 20.0, grace_s: float = 5.0) -> None:
        self.folder = folder
        self.stop, self.kill, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        processes = tuple(
            ProcessPlan(
                name, Kind(name.split("-")[0]), "zone-a", (sys.executable, "-c", code, name, str(folder)), "h:1", ()
            )
            for name, code in programs.items()
        )
        limits = Limits(ready_s, dict.fromkeys(Kind, grace_s), RESTARTS)
        plan = MeshPlan("sim", "", processes)
        self.supervisor = Supervisor(plan, folder, limits, self._probe, self._told, random.Random(1), joined)

    def _probe(self, process: ProcessPlan) -> Probe:
        async def ready() -> bool:
            return (self.folder / process.name).exists()

        return ready

    def _told(self, _: MeshState) -> None:
        self._changed.set()

    async def until(self, holds: Callable[[MeshState], bool]) -> MeshState:
        """Wait for a state."""
        async with asyncio.timeout(20):
            while not holds(self.supervisor.state):
                self._changed.clear()
                await self._changed.wait()
        return self.supervisor.state

    def process(self, name: str) -> state.ProcessState:
        """A process's state."""
        return next(process for process in self.supervisor.state.processes if process.name == name)

    def run(self, *, end_on_failure: bool = False) -> Coroutine[Any, Any, bool]:
        """Run it."""
        return self.supervisor.run(self.stop, self.kill, end_on_failure=end_on_failure)


async def joined(router: str, servers: frozenset[str]) -> bool:
    return True


def up(mesh: MeshState) -> bool:
    return mesh.phase is Phase.UP


def identities(mesh: MeshState) -> list[Identity]:
    return [process.identity for process in mesh.processes if process.identity is not None]


ALL_GOOD = {"consul-1": GOOD, "server-1": GOOD, "server-2": GOOD, "router-1": GOOD}


async def test_comes_up_and_ends_in_order(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, ALL_GOOD)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(mesh.run())
        seen = await mesh.until(up)
        assert state.read(tmp_path) == seen
        assert all(identity.alive(one) for one in identities(seen))
        assert len(identities(seen)) == 4
        mesh.stop.set()
    assert running.result()
    ends = (tmp_path / "ends").read_text().split()
    assert (ends[0], sorted(ends[1:3]), ends[3]) == ("router-1", ["server-1", "server-2"], "consul-1")
    assert state.read(tmp_path) is None
    assert not any(identity.alive(one) for one in identities(seen))


async def test_what_died_starts_again(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, ALL_GOOD)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(mesh.run())
        await mesh.until(up)
        first = mesh.process("server-1").identity
        assert first is not None and identity.send(first, signal.SIGKILL)
        await mesh.until(
            lambda _: mesh.process("server-1").restarts == 1 and mesh.process("server-1").phase is Phase.UP
        )
        assert mesh.process("server-1").identity not in (None, first)
        mesh.stop.set()
    assert running.result()


async def test_gives_up_loudly_and_the_rest_keeps_running(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, {**ALL_GOOD, "server-2": BROKEN})
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(mesh.run())
        await mesh.until(up)
        failed = mesh.process("server-2")
        assert failed.phase is Phase.FAILED
        assert "exited with 3, as it did 3 times" in failed.note
        assert failed.log in failed.note and "cannot find my model" in failed.note
        assert mesh.process("server-1").phase is Phase.UP
        mesh.stop.set()
    assert not running.result()


async def test_wrong_settings_are_given_up_at_once(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, {**ALL_GOOD, "router-1": WRONG})
    assert not await mesh.run()
    assert "router-1" in mesh.supervisor.problem and "zonez" in mesh.supervisor.problem
    assert mesh.process("router-1").restarts == 0


async def test_ends_on_failure_if_told_to(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, {**ALL_GOOD, "server-2": BROKEN})
    assert not await mesh.run(end_on_failure=True)
    assert "server-2" in mesh.supervisor.problem
    assert state.read(tmp_path) is None


async def test_not_up_in_time(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, {**ALL_GOOD, "server-2": SILENT}, ready_s=2.0)
    assert not await mesh.run()
    assert "not up within 2 s" in mesh.supervisor.problem
    assert "server-2" in mesh.supervisor.problem and "server-1" not in mesh.supervisor.problem


async def test_who_does_not_end_is_killed(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, {**ALL_GOOD, "server-2": STUBBORN}, grace_s=0.5)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(mesh.run())
        seen = await mesh.until(up)
        mesh.stop.set()
    assert running.result()
    assert not any(identity.alive(one) for one in identities(seen))


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, dict.fromkeys(ALL_GOOD, STUBBORN), grace_s=1000.0)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(mesh.run())
        seen = await mesh.until(up)
        mesh.stop.set()
        await mesh.until(lambda now: now.phase is Phase.STOPPING)
        mesh.kill.set()
    assert not any(identity.alive(one) for one in identities(seen))


def test_processes_die_with_their_supervisor(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from stoker_client.mesh.child import Child\n"
        "async def main():\n"
        "    argv = [sys.executable, '-c', 'import signal; signal.pause()']\n"
        "    child = await Child.start(argv, {}, Path(sys.argv[1]))\n"
        "    print(child.identity.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    child = identity.identify(int(supervisor.stdout.readline()))
    assert child is not None
    supervisor.kill()
    supervisor.communicate()
    end_s = time.monotonic() + 5
    while identity.alive(child) and time.monotonic() < end_s:
        time.sleep(0.01)
    assert not identity.alive(child)
