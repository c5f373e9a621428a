"""Keeps a router's processes running: each is started again when it ends, after a pause, and takes no other with it."""

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stoker_common.backoff import Backoff
from stoker_common.clock import Clock

log = logging.getLogger(__name__)

# The command of process number N, which tells on a descriptor that it listens.
Command = Callable[[int, int], Sequence[str]]


@dataclass(frozen=True, slots=True)
class ProcessRules:
    """Times in seconds."""

    # What a process may take to finish what runs, and beside that to end.
    drain_s: float
    end_s: float = 5.0
    # One that has lived so long ended for a new reason: it is back at once.
    steady_s: float = 60.0


@dataclass(slots=True)
class Process:
    """One life of one process. `metrics_port`: on this host's loopback; -1 before it listens, or for none."""

    number: int
    pid: int
    metrics_port: int = -1
    listens: bool = False


class Processes:
    """All of them. `run` returns when all have ended after `stop`, or when not one could be started."""

    def __init__(
        self,
        count: int,
        command: Command,
        environ: Mapping[str, str],
        rules: ProcessRules,
        backoff: Callable[[], Backoff],
        clock: Clock,
    ) -> None:
        self._count = count
        self._command = command
        self._environ = dict(environ)
        self._rules = rules
        self._backoff = backoff
        self._clock = clock
        self._stop = asyncio.Event()
        self._worked = False
        self._status = 0
        # Replaced as a whole, so that a scrape in another thread sees one moment.
        self.running: tuple[Process, ...] = ()
        self.restarts = 0
        self.on_end: Callable[[int], None] = lambda pid: None

    async def run(self, listening: asyncio.Event) -> int:
        """Sets the event when a first one listens. The exit status: 0 after `stop`, else that of what never started."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(1, self._count + 1):
                tasks.create_task(self._keep(number, listening), name=f"router process {number}")
        return self._status

    def stop(self) -> None:
        """End all of them: each finishes what runs, within its limit. May be called twice."""
        self._stop.set()
        for process in self.running:
            _signal(process.pid, signal.SIGTERM)

    async def _keep(self, number: int, listening: asyncio.Event) -> None:
        backoff = self._backoff()
        while not self._stop.is_set():
            began_s = self._clock()
            status = await self._live(number, listening)
            if self._stop.is_set():
                return
            if not self._worked:
                # What fails before anything ever worked will not work by trying again: a port, a setting.
                log.error("a router process could not start", extra={"number": number, "status": status})
                self._status = status if status > 0 else 1
                self.stop()
                return
            if self._clock() - began_s >= self._rules.steady_s:
                backoff.reset()
            pause_s = backoff.delay_s()
            self.restarts += 1
            log.warning(
                "router process ended; it is started again",
                extra={"number": number, "status": status, "pause_s": round(pause_s, 2)},
            )
            await self._stopped_within(pause_s)

    async def _live(self, number: int, listening: asyncio.Event) -> int:
        """One life; its exit status, negative for a signal."""
        read, write = os.pipe()
        try:
            running = await asyncio.create_subprocess_exec(
                *self._command(number, write), env=self._environ, pass_fds=(write,), stdin=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            # No memory or no descriptors for one process is no reason to end the others.
            os.close(read)
            log.error("cannot start a router process", extra={"number": number, "why": str(error)})
            return 1
        finally:
            os.close(write)
        process = Process(number, running.pid)
        self.running = (*self.running, process)
        log.info("router process started", extra={"number": number, "pid": process.pid})
        if self._stop.is_set():
            _signal(process.pid, signal.SIGTERM)
        try:
            async with asyncio.TaskGroup() as tasks:
                hearing = tasks.create_task(self._hear(read, process, listening))
                stopping = tasks.create_task(self._see_it_stop(process))
                status = await running.wait()
                hearing.cancel()
                stopping.cancel()
        finally:
            if running.returncode is None:
                _signal(process.pid, signal.SIGKILL)
                await running.wait()
            self.running = tuple(other for other in self.running if other is not process)
            self.on_end(process.pid)
        return status

    async def _hear(self, descriptor: int, process: Process, listening: asyncio.Event) -> None:
        """Wait for the process to say that it listens. Nothing comes from one that ends before."""
        reader = asyncio.StreamReader()
        with os.fdopen(descriptor, "rb") as pipe:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), pipe
            )
            try:
                line = await reader.readline()
            finally:
                transport.close()
        if line:
            process.metrics_port = json.loads(line)["metrics_port"]
            process.listens = self._worked = True
            listening.set()

    async def _see_it_stop(self, process: Process) -> None:
        """Kill what does not end in its time once it is told to."""
        await self._stop.wait()
        await asyncio.sleep(self._rules.drain_s + self._rules.end_s)
        log.warning("router process does not end; it is killed", extra={"number": process.number, "pid": process.pid})
        _signal(process.pid, signal.SIGKILL)

    async def _stopped_within(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._stop.wait()
        except TimeoutError:
            return


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has just ended, which is what was wanted
