"""Carries moves out, one after the other, and watches the engines of the models that are hot.

One after the other, since an engine that loads measures the memory that is free, and none may change it meanwhile. What
runs on a model that makes room is never cut off: it is waited for.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from discovery.endpoint import Residency
from model_server.engine import EngineError
from model_server.liveness import Liveness
from model_server.residency.failures import Failures
from model_server.residency.held import Held
from model_server.residency.metrics import ResidencyMetrics
from model_server.residency.move import Move
from model_server.residency.seats import Seats
from stoker_common.clock import Clock
from stoker_common.refusal import Refusal, unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

# After an engine that failed as it was put away: it is dropped, and loads anew.
_DROPPED_RETRY_S = 5.0


class Mover:
    """A server's. Belongs to one event loop. What moves, and where to, is decided before (`Models`)."""

    def __init__(
        self,
        models: Collection[Held],
        seats: Seats,
        failures: Failures,
        metrics: ResidencyMetrics,
        ready: Callable[[Held], Move],
        *,
        max_asleep: int,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        """`ready`: the move that makes a model hot, for an adapter's base that is needed and is not."""
        self.moves: dict[str, Move] = {}
        self._models = models
        self._seats = seats
        self._failures = failures
        self._metrics = metrics
        self._ready = ready
        self._max_asleep = max_asleep
        self._clock = clock
        self._on_change = on_change
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None
        self._failed: asyncio.Future[Liveness] | None = None
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def runs(self) -> bool:
        """Whether moves can begin."""
        return self._tasks is not None

    async def run(self) -> Liveness:
        """Watch the engines and run the moves, until an engine has failed: returns how."""
        self._failed = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                for held in self._models:
                    if held.hot:
                        self._watch(held)
                return await self._failed
            finally:
                self._tasks = None
                for task in self._running:
                    task.cancel()

    def begin(self, held: Held, victims: Sequence[Held], expected_s: float | None) -> Move:
        """Make it hot, once these have made room, which takes about so long."""
        move = self.moves[held.name] = Move(held.name, expected_s, self._clock)
        held.moving_to = Residency.HOT
        for victim in victims:
            _leave(victim, Residency.ASLEEP)
            self._metrics.evictions.labels(victim.name).inc()
        self._spawn(self._run(move, held, victims))
        self._on_change()
        return move

    async def put_away(self, held: Held, to: Residency, grace_s: float | None) -> Refusal | None:
        """Move it out of the way. What runs on it is waited for, for `grace_s` at most (None: until it has ended).

        Returns what the caller is to hear: raised where it moves, it would end all other moves with it.
        """
        _leave(held, to)
        self._on_change()
        return await asyncio.shield(self._spawn(self._put_away(held, to, grace_s)))

    async def bring(self, held: Held, tell: Callable[[str], None]) -> None:
        """Make it hot; `tell` hears what is done. Raises EngineError."""
        was, began_s = held.residency, self._clock()
        await held.bring(tell)
        took_s = self._clock() - began_s
        self._failures.forget(held.name)
        self._seats.observe(held, was, took_s)
        self._metrics.load_seconds.labels(held.name, was.value).observe(took_s)
        log.info("a model is hot", extra={"model": held.name, "was": was.value, "took_s": round(took_s, 2)})

    async def _put_away(self, held: Held, to: Residency, grace_s: float | None) -> Refusal | None:
        try:
            async with asyncio.timeout(grace_s):
                await held.running.wait_empty()
        except TimeoutError:
            held.running.fail(held.left)
            await held.running.wait_empty()
        try:
            async with self._one_at_a_time if held.base is None else held.base.steady:
                await self._put(held, to)
        except EngineError as error:
            log.error("a model was not put away as asked", extra={"model": held.name, "why": str(error)})
            text = f"the model {held.name!r} was dropped, because its engine failed: {error}"
            return unavailable(text, reason="MODEL_FAILED", retry_after_s=_DROPPED_RETRY_S)
        return None

    async def _run(self, move: Move, held: Held, victims: Sequence[Held]) -> None:
        was, waiting = held.residency, list(victims)
        try:
            for victim in victims:
                move.tell(f"waiting for the streams of {victim.name}")
                await victim.running.wait_empty()
            async with self._turn(held, move):
                while waiting:
                    move.tell(f"making room: {waiting[0].name}")
                    await self._put(waiting.pop(0), Residency.ASLEEP)
                await self.bring(held, move.tell)
        except Refusal as refusal:  # of its base
            move.end(partial(_again, refusal))
        except EngineError as error:
            failure = self._failures.note(held.name, str(error))
            log.error("a model did not get hot", extra={"model": held.name, "why": str(error)})
            move.end(failure.refusal)
        except asyncio.CancelledError:
            move.end(held.left)
            raise
        else:
            self._watch(held)
            move.end()
        finally:
            del self.moves[held.name]
            held.moving_to = None
            for victim in waiting:  # stays after all
                victim.moving_to = None
                victim.running.open()
            self._metrics.loads.labels(held.name, was.value, "ok" if held.hot else "failed").inc()
            self._on_change()

    @asynccontextmanager
    async def _turn(self, held: Held, move: Move) -> AsyncIterator[None]:
        """Around a move. An adapter's base is hot, and stays. Raises Refusal where it does not get hot."""
        base = held.base
        if base is None:
            async with self._one_at_a_time:
                move.begin()
                yield
            return
        while True:
            if not base.hot:
                async with aclosing(self._ready(base).follow()) as news:
                    async for progress in news:
                        move.tell(progress.activity)
            async with base.steady:
                if base.hot:
                    yield
                    return

    async def _put(self, held: Held, to: Residency) -> None:
        """Nothing runs on it any more."""
        if (watch := self._watches.pop(held.name, None)) is not None:
            watch.cancel()
            await asyncio.wait((watch,))
        try:
            async with held.steady:
                await held.put(to)
        finally:
            held.moving_to = None
            log.info("a model made room", extra={"model": held.name, "is": held.residency.value})
            self._on_change()
        asleep = sorted(
            (each for each in self._models if each.residency is Residency.ASLEEP), key=lambda each: each.used_at_s
        )
        for each in asleep[: max(0, len(asleep) - self._max_asleep)]:
            if each.moving_to is None:
                await each.put(Residency.STAGED)
                self._on_change()

    def _watch(self, held: Held) -> None:
        """Tell `run` when its engine fails."""
        prober, liveness = held.prober, held.liveness
        if prober is None or liveness is None:
            return

        async def watch() -> None:
            await prober.run_until_failed()
            if self._failed is not None and not self._failed.done():
                self._failed.set_result(liveness)

        self._watches[held.name] = self._spawn(watch())

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        if self._tasks is None:
            raise RuntimeError("models move while `run` runs")
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


def _leave(held: Held, to: Residency) -> None:
    held.moving_to = to if held.sleeps or to is not Residency.ASLEEP else Residency.STAGED
    held.running.close(held.left)


def _again(refusal: Refusal) -> Refusal:
    """Made anew: an exception carries the traceback of the one who raised it."""
    return Refusal(
        refusal.code,
        refusal.message,
        reason=refusal.reason,
        field=refusal.field,
        retry_after_s=refusal.retry_after_s,
    )
