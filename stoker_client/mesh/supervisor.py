"""Runs a local mesh: all processes at once, kept running, its state in a file, ended in order."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stoker_client.mesh import state as state_file
from stoker_client.mesh.identity import me
from stoker_client.mesh.keeper import Keeper
from stoker_client.mesh.plan import MeshPlan, ProcessPlan
from stoker_client.mesh.readiness import Probe, sees, until_true
from stoker_client.mesh.restarts import Failures, RestartPolicy
from stoker_client.mesh.state import Kind, MeshState, Phase, ProcessState

# Who ends first: routers let their streams end while the servers still serve them, servers deregister while Consul
# still listens.
ENDING_ORDER = (Kind.ROUTER, Kind.SERVER, Kind.CONSUL)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds. `grace_s`: from asking a process of a kind to end to killing it."""

    ready_s: float
    grace_s: Mapping[Kind, float]
    restarts: RestartPolicy


class Supervisor:
    """A local mesh while it runs."""

    def __init__(
        self,
        plan: MeshPlan,
        folder: Path,
        limits: Limits,
        probe: Callable[[ProcessPlan], Probe],
        told: Callable[[MeshState], None],
        rng: random.Random,
        joined: Callable[[str, frozenset[str]], Awaitable[bool]] = sees,
    ) -> None:
        """`probe` makes the readiness probe of a process; `told` gets every new state of the mesh; `joined` says
        whether the router at an address sees these servers."""
        self._plan = plan
        self._folder = folder
        self._limits = limits
        self._told = told
        self._joined = joined
        self._phase = Phase.STARTING
        self._started_at_s = time.time()
        self._moved = asyncio.Event()
        self._given_up = asyncio.Event()
        self._myself = me()
        # Why the mesh ended by itself; empty if it did not.
        self.problem = ""
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._keepers = [
            Keeper(process, probe(process), Failures(limits.restarts, rng), logs, self._process_changed)
            for process in plan.processes
        ]

    @property
    def state(self) -> MeshState:
        """The mesh as it is now."""
        return MeshState(
            supervisor=self._myself,
            phase=self._phase,
            engine=self._plan.engine,
            model=self._plan.model,
            started_at_s=self._started_at_s,
            ends_within_s=sum(self._limits.grace_s.values()),
            processes=tuple(keeper.state for keeper in self._keepers),
        )

    async def run(self, stop: asyncio.Event, kill: asyncio.Event, *, end_on_failure: bool) -> bool:
        """Run the mesh until `stop`; whether all of it ran to the end.

        `kill` ends it without waiting for anybody. It ends by itself, and `problem` says why, when it is not up within
        its limit, when no server or no router is left of it at the start, or, with `end_on_failure`, when any process
        has to be given up before the mesh is up.
        """
        async with asyncio.TaskGroup() as tasks:
            for keeper in self._keepers:
                tasks.create_task(keeper.run())
            tasks_of_mine = [
                tasks.create_task(self._come_up(without_some=not end_on_failure)),
                tasks.create_task(stop.wait()),
                tasks.create_task(self._given_up.wait()),
                tasks.create_task(self._kill_on(kill)),
            ]
            coming_up, stopped, given_up, _ = tasks_of_mine
            awaited = {coming_up, stopped} | ({given_up} if end_on_failure else set())
            done, _ = await asyncio.wait(awaited, timeout=self._limits.ready_s, return_when=asyncio.FIRST_COMPLETED)
            self.problem = "" if stopped in done or self._phase is Phase.UP else self._why_not_up(timed_out=not done)
            if not self.problem:
                await stop.wait()
            await self._end()
            for task in tasks_of_mine:
                task.cancel()
        state_file.remove(self._folder)
        return not self.problem and not self._failed()

    async def _come_up(self, *, without_some: bool) -> None:
        """Return when every process answers or was given up, and every router sees every server.

        The mesh is up then if a server and a router are; `without_some`: even if others were given up.
        """
        while any(keeper.state.phase not in (Phase.UP, Phase.FAILED) for keeper in self._keepers):
            self._moved.clear()
            await self._moved.wait()
        if self._failed() and not (without_some and self._up(Kind.SERVER) and self._up(Kind.ROUTER)):
            return
        servers = frozenset(process.name for process in self._up(Kind.SERVER))
        for router in self._up(Kind.ROUTER):
            await until_true(partial(self._joined, router.address, servers))
        self._to(Phase.UP)

    def _why_not_up(self, *, timed_out: bool) -> str:
        """Why the mesh has to end now."""
        if not timed_out:
            return "\n".join(f"{process.name} {process.note}" for process in self._failed())
        late = [process for process in self.state.processes if process.phase is not Phase.UP]
        names = ", ".join(f"{process.name} ({process.phase}, log: {process.log})" for process in late)
        waits_for = names or "routers do not see every server"
        return f"not up within {self._limits.ready_s:g} s (--ready-timeout sets that): {waits_for}"

    async def _end(self) -> None:
        self._to(Phase.STOPPING)
        for kind in ENDING_ORDER:
            grace_s = self._limits.grace_s[kind]
            async with asyncio.TaskGroup() as tasks:
                for keeper in self._keepers:
                    if keeper.state.kind is kind:
                        tasks.create_task(keeper.stop(grace_s))

    async def _kill_on(self, kill: asyncio.Event) -> None:
        await kill.wait()
        for keeper in self._keepers:
            keeper.kill()

    def _process_changed(self, process: ProcessState) -> None:
        self._moved.set()
        if process.phase is Phase.FAILED:
            self._given_up.set()
        self._tell()

    def _to(self, phase: Phase) -> None:
        self._phase = phase
        self._tell()

    def _tell(self) -> None:
        state_file.write(self._folder, self.state)
        self._told(self.state)

    def _up(self, kind: Kind) -> tuple[ProcessState, ...]:
        return tuple(process for process in self.state.of_kind(kind) if process.phase is Phase.UP)

    def _failed(self) -> tuple[ProcessState, ...]:
        return tuple(process for process in self.state.processes if process.phase is Phase.FAILED)
