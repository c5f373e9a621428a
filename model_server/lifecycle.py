"""A server's life: load, probe, listen, register, serve; then drain and leave, or fail and leave.

It fails rather than limps: a server whose engine is dead, stuck or off its device says so, ends what runs, leaves and
exits with 1, so that routers go elsewhere at once and a supervisor starts a fresh one (docs/adr/0024).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from discovery.catalog import Registrar
from discovery.endpoint import Endpoint
from discovery.pins import Pins
from model_server.engine import EngineError
from model_server.inflight import InFlight
from model_server.listener import Listener, PortTaken
from model_server.liveness import LifeState, Liveness
from model_server.residency.models import Models
from stoker_common.health import Health
from stoker_common.refusal import Refusal, unavailable

log = logging.getLogger(__name__)

EXIT_LEFT = 0
EXIT_FAILED = 1

# How often the record's load is brought up to date; the registrar decides what of it is written.
_ANNOUNCE_EVERY_S = 1.0
# What handlers get to tell their callers that they ended, before gRPC is closed under them.
_LAST_WORDS_S = 1.0
# A dead engine may not even stop.
_ENGINE_STOP_S = 10.0
_RETRY_ELSEWHERE_S = 0.1

_REASONS = {
    LifeState.DEAD: "ENGINE_DEAD",
    LifeState.STUCK: "ENGINE_STUCK",
    LifeState.DEVICE_LOST: "DEVICE_LOST",
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a life needs. `listen` brings up gRPC, `goodbye` tells routers; `endpoint` is valid once it listens."""

    models: Models
    registrar: Registrar
    pins: Pins
    listener: Listener
    health: Health
    liveness: Liveness
    in_flight: InFlight
    listen: Callable[[], Awaitable[None]]
    endpoint: Callable[[], Endpoint]
    goodbye: Callable[[str, float], None]
    drain_s: float


class Lifecycle:
    """One life. `run` once."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._drain_s = parts.drain_s
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._serving = asyncio.Event()
        self._over = asyncio.Event()

    def drain(self, grace_s: float | None = None) -> None:
        """Leave; what runs may go on for `grace_s` (default: the setting's), then its routers move it elsewhere."""
        if grace_s is not None:
            self._drain_s = grace_s
        self._stop.set()

    def stop(self) -> None:
        """Drain and leave; a second time, leave at once."""
        if self._stop.is_set():
            self._at_once.set()
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to leave, or is over."""
        return self._stop.is_set() or self._over.is_set()

    async def wait_serving(self) -> bool:
        """Wait until it serves (True) or is over without having served (False)."""
        await _first(self._serving.wait(), self._over.wait())
        return self._serving.is_set()

    async def run(self) -> int:
        """Live; returns the exit code."""
        try:
            if not await self._start():
                return EXIT_FAILED if self._parts.liveness.state.failed else EXIT_LEFT
            return await self._serve()
        finally:
            await self._end()
            self._over.set()

    async def _start(self) -> bool:
        """Load, probe and listen. False if it failed, or was asked to leave before it served."""
        parts = self._parts
        try:
            if not await _unless(self._stop, self._load()):
                return False
            if not parts.liveness.state.failed:
                await parts.listen()
        except (EngineError, PortTaken) as error:
            parts.liveness.died(str(error))
        if parts.liveness.state.failed:
            log.error("cannot serve", extra=self._why())
        return not parts.liveness.state.failed

    async def _load(self) -> None:
        liveness, failed = self._parts.liveness, await self._parts.models.start()
        if failed is not None:
            liveness.fails_as(failed)
        else:
            liveness.serves("probe generation came back")

    async def _watch(self) -> None:
        """Until one of the engines has failed: better a fresh process than one that lacks a model."""
        self._parts.liveness.fails_as(await self._parts.models.run())

    async def _serve(self) -> int:
        parts = self._parts
        parts.registrar.announce(parts.endpoint())
        parts.registrar.set_health(passing=True, note="")
        async with asyncio.TaskGroup() as tasks:
            kept = [
                tasks.create_task(parts.registrar.run()),
                tasks.create_task(parts.pins.run(parts.models.pin)),
                tasks.create_task(self._keep_announcing()),
            ]
            watching = tasks.create_task(self._watch())
            parts.in_flight.open()
            parts.health.set(serving=True)
            self._serving.set()
            log.info("serving", extra={"server": parts.endpoint().server, "address": parts.endpoint().address})
            await _first(asyncio.shield(watching), self._stop.wait())
            drained = not watching.done() and await self._drain(watching)
            if not drained:
                await self._fail()
            for task in (*kept, watching):
                task.cancel()
        return EXIT_LEFT if drained else EXIT_FAILED

    async def _keep_announcing(self) -> None:
        while True:
            await asyncio.sleep(_ANNOUNCE_EVERY_S)
            self._parts.models.meters.settle()
            self._parts.registrar.announce(self._parts.endpoint())

    async def _drain(self, watching: asyncio.Task[None]) -> bool:
        """Let what runs finish, and leave. False if the engine failed meanwhile."""
        parts = self._parts
        log.info("draining", extra={"in_flight": len(parts.in_flight), "limit_s": self._drain_s})
        parts.liveness.drain("asked to leave")
        parts.in_flight.close(_draining)
        parts.health.set(serving=False)
        parts.registrar.leaving("asked to leave")
        parts.goodbye("asked to leave", self._drain_s)
        ends = asyncio.shield(watching), self._at_once.wait()
        await _first(parts.in_flight.wait_empty(), _expired(self._drain_s), *ends)
        if parts.liveness.state.failed:
            return False
        if len(parts.in_flight):
            log.warning("ending what has not finished", extra={"in_flight": len(parts.in_flight)})
            await self._end_requests(_draining)
        await _first(parts.registrar.leave("asked to leave"), self._at_once.wait())
        return True

    async def _fail(self) -> None:
        """Say so everywhere, end what runs, leave."""
        parts = self._parts
        log.error("leaving, because the server cannot serve any more", extra=self._why())
        parts.health.set(serving=False)
        parts.registrar.set_health(passing=False, note=parts.liveness.reason)
        parts.goodbye(parts.liveness.reason, 0.0)
        await self._end_requests(self._failed)
        await _first(parts.registrar.leave(parts.liveness.reason), self._at_once.wait())

    def _failed(self) -> Refusal:
        liveness = self._parts.liveness
        reason = _REASONS.get(liveness.state, "SERVER_FAILED")
        return unavailable(f"this server leaves: {liveness.reason}", retry_after_s=_RETRY_ELSEWHERE_S, reason=reason)

    async def _end_requests(self, refusal: Callable[[], Refusal]) -> None:
        self._parts.in_flight.fail(refusal)
        await _first(self._parts.in_flight.wait_empty(), _expired(_LAST_WORDS_S))

    async def _end(self) -> None:
        """Whatever happened: nothing is left running."""
        await self._parts.listener.stop(_LAST_WORDS_S)
        try:
            async with asyncio.timeout(_ENGINE_STOP_S):
                await self._parts.models.stop()
        except (TimeoutError, EngineError) as error:
            log.error("an engine did not stop", extra={"error": type(error).__name__})
        log.info("over", extra=self._why())

    def _why(self) -> dict[str, str]:
        return {"state": self._parts.liveness.state.value, "why": self._parts.liveness.reason}


def _draining() -> Refusal:
    return unavailable(
        "this server is draining; ask another", retry_after_s=_RETRY_ELSEWHERE_S, reason="SERVER_DRAINING"
    )


async def _expired(seconds: float) -> None:
    """A limit on waiting for something else, never waiting itself."""
    await asyncio.sleep(seconds)


async def _first(*awaitables: Awaitable[object]) -> None:
    """Wait until one of them is done; the others are cancelled and have ended when this returns."""
    futures = [asyncio.ensure_future(each) for each in awaitables]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work; False if `stop` came first, and the work was cancelled. Raises what the work raises."""
    task = asyncio.ensure_future(work)
    await _first(task, stop.wait())
    if task.cancelled():
        return False
    task.result()
    return True
