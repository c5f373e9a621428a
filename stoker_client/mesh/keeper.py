"""Keeps one process of the mesh running: starts it, waits until it answers, starts it again, gives up loudly."""

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from stoker_client.mesh.child import Child
from stoker_client.mesh.logfile import last_lines
from stoker_client.mesh.plan import ProcessPlan
from stoker_client.mesh.readiness import Probe, until_true
from stoker_client.mesh.restarts import Failures
from stoker_client.mesh.state import Phase, ProcessState
from stoker_common.clock import Clock

LAST_LINES = 8


class Keeper:
    """One process and what is known of it. `run` belongs to a task group; `stop` ends what `run` does."""

    def __init__(
        self,
        plan: ProcessPlan,
        probe: Probe,
        failures: Failures,
        logs: Path,
        changed: Callable[[ProcessState], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self._plan = plan
        self._probe = probe
        self._failures = failures
        self._changed = changed
        self._clock = clock
        self._log = logs / f"{plan.name}.log"
        self._child: Child | None = None
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self.state = ProcessState(
            name=plan.name,
            kind=plan.kind,
            zone=plan.zone,
            phase=Phase.STARTING,
            address=plan.address,
            log=str(self._log),
            metrics_address=plan.metrics_address,
        )

    async def run(self) -> None:
        """Keep the process running until `stop`, or until it has failed too often. Cancelled, it kills the process."""
        try:
            while not self._stopping.is_set():
                code = await self._live()
                if self._stopping.is_set():
                    break
                pause_s = self._failures.next_start_s(self._clock(), code)
                if pause_s is None:
                    self._to(Phase.FAILED, note=self._verdict(code))
                    return
                self._to(Phase.RESTARTING, note=f"{ending(code)}; starts again in {pause_s:.1f} s")
                await self._pause(pause_s)
            self._to(Phase.STOPPED)
        finally:
            if self._child is not None:
                self._child.kill()
            self._ended.set()

    async def stop(self, grace_s: float) -> None:
        """End the process: asked at first, killed after `grace_s` seconds. Returns when it has ended."""
        self._stopping.set()
        if self.state.phase in (Phase.FAILED, Phase.STOPPED):
            return
        self._to(Phase.STOPPING)
        if self._child is not None:
            await self._child.stop(grace_s)
        await self._ended.wait()

    def kill(self) -> None:
        """End the process at once."""
        self._stopping.set()
        if self._child is not None:
            self._child.kill()

    async def _live(self) -> int:
        """One life of the process, from its start to its end; its exit code."""
        self._child = await Child.start(self._plan.argv, {**os.environ, **self._plan.environ}, self._log)
        if self._stopping.is_set():
            self._child.kill()
        self._to(Phase.STARTING, note="")
        async with asyncio.TaskGroup() as tasks:
            ready = tasks.create_task(self._announce_ready())
            code = await self._child.wait()
            ready.cancel()
        return code

    async def _announce_ready(self) -> None:
        await until_true(self._probe)
        if not self._stopping.is_set():
            self._to(Phase.UP, note="")

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            self.state = dataclasses.replace(self.state, restarts=self.state.restarts + 1)

    def _to(self, phase: Phase, note: str | None = None) -> None:
        running = phase in (Phase.STARTING, Phase.UP, Phase.STOPPING) and self._child is not None
        self.state = dataclasses.replace(
            self.state,
            phase=phase,
            identity=self._child.identity if running and self._child is not None else None,
            note=self.state.note if note is None else note,
        )
        self._changed(self.state)

    def _verdict(self, code: int) -> str:
        """Why it is given up, with the end of its log: all that a person needs to begin."""
        times = "" if self._failures.count == 1 else f", as it did {self._failures.count} times"
        lines = "\n".join(f"  {line}" for line in last_lines(self._log, LAST_LINES))
        return f"{ending(code)}{times}; given up. Its log, {self._log}, ends:\n{lines}"


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
