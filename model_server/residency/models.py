"""The models of a server and where each is: readies them when asked, once however many ask, and makes room for them.

State changes synchronously; moves then run one after the other, since an engine that loads measures the memory that is
free, and none may change it meanwhile. What runs on a model that makes room is never cut off: it is waited for.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from discovery.endpoint import ModelState, Residency
from model_server.engine import EngineError, EngineInfo, EngineLoad
from model_server.liveness import Liveness
from model_server.meter import Meters
from model_server.record import Usage
from model_server.residency.failures import Failures
from model_server.residency.held import Held, NotAnswering
from model_server.residency.metrics import ResidencyMetrics
from model_server.residency.move import Move, Progress
from model_server.residency.ready_times import ReadyTimes
from model_server.residency.room import Limits, Price, Seat, make_room, price
from stoker_common.clock import Clock
from stoker_common.refusal import Code, Refusal, exhausted, not_found, unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
Tell = Callable[[Progress], Awaitable[None]]

_SHORTEST_RETRY_S = 0.1
# After an engine that failed as it was put away: it is dropped, and loads anew.
_DROPPED_RETRY_S = 5.0


class Models:
    """All of them. Belongs to one event loop; `start`, then `run` for as long as the server serves, then `stop`."""

    def __init__(
        self,
        held: Sequence[Held],
        limits: Limits,
        metrics: ResidencyMetrics,
        *,
        max_asleep: int,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self._held = {each.name: each for each in held}
        self._limits = limits
        self._metrics = metrics
        self._max_asleep = max_asleep
        self._clock = clock
        self._on_change = on_change
        self._times = ReadyTimes()
        # Apart: what was never measured is taken to be like the others of its kind.
        self._adapter_times = ReadyTimes()
        self._moves: dict[str, Move] = {}
        self._failures = Failures(clock)
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None
        self._failed: asyncio.Future[Liveness] | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self.meters = Meters([each.meter for each in held if each.base is None])
        metrics.watch(self.states)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    @property
    def info(self) -> EngineInfo:
        """What the server's engines are together: what all of them can do, and the largest of what they can hold.

        Valid after `start`. Streams are not summed: no single model takes more than its own engine's.
        """
        infos = [each.info for each in self if each.info is not None]
        if not infos:
            raise EngineError("no model was loaded yet")
        return replace(
            infos[0],
            max_streams=max(info.max_streams for info in infos),
            kv_tokens=max(info.kv_tokens for info in infos),
            step_tokens=min(info.step_tokens for info in infos),
            resume_modes=tuple(mode for mode in infos[0].resume_modes if all(mode in i.resume_modes for i in infos)),
            exact_modes=tuple(mode for mode in infos[0].exact_modes if all(mode in i.exact_modes for i in infos)),
        )

    def load(self) -> EngineLoad:
        """The engines' figures together."""
        loads = [each.load() for each in self]
        return EngineLoad(
            sum(load.steps for load in loads),
            sum(load.running for load in loads),
            sum(load.waiting for load in loads),
            max((load.kv_usage for load in loads), default=0.0),
        )

    def room(self) -> Price:
        """What room for a model that is not hot would cost now, for the largest of them. Nothing where all are hot."""
        cold = [(self._seat(each), each) for each in self._models() if not each.awake]
        if not cold:
            return Price()
        wanted, held = max(cold, key=lambda each: (each[0].share, each[0].ready_s))
        # As of one that nobody has asked for yet: who asks now is the router's to know.
        return price(replace(wanted, demand_per_s=0.0), self._awake(held), self._limits, self._clock())

    def usage(self) -> Usage:
        """The device's latest reading."""
        return next((each.prober.usage for each in self if each.prober is not None), Usage())

    def states(self) -> tuple[ModelState, ...]:
        """Where each model is, in the order of the settings."""
        return tuple(self.state(each) for each in self)

    def state(self, held: Held) -> ModelState:
        """Where one of them is."""
        return held.state(self._expected_s(held, held.residency))

    def find(self, name: str, field: str = "model") -> Held:
        """The model called so, or the nearest to hot of those whose name without `@version` it is. Raises Refusal."""
        if name in self._held:
            return self._held[name]
        alike = [each for each in self if name and each.name.partition("@")[0] == name]
        if not alike:
            have = ", ".join(repr(each) for each in self._held)
            raise not_found(f"is not on this server, which serves {have}", field=field, reason="MODEL_NOT_FOUND")
        return next((each for each in alike if each.hot), alike[0])

    async def start(self) -> Liveness | None:
        """Make the first models hot, as many as may be. Raises EngineError; an engine that started and does not answer
        is returned as its liveness."""
        hot: list[Seat] = []
        for held in self._models():
            seat = self._seat(held)
            if make_room(seat, [replace(each, pinned=True) for each in hot], self._limits, self._clock()).refused:
                continue
            hot.append(seat)
            log.info("loading", extra={"model": held.name})
            try:
                await self._bring(held, lambda activity: None)
            except NotAnswering as error:
                return error.liveness
        if not hot:
            raise EngineError("no model may be hot: raise max_hot or memory_budget, or lower the models' shares")
        return None

    async def run(self) -> Liveness:
        """Watch the engines and run the moves, until an engine has failed: returns how."""
        self._failed = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                for held in self:
                    if held.hot:
                        self._watch(held)
                return await self._failed
            finally:
                self._tasks = None
                for task in self._running:
                    task.cancel()

    async def stop(self) -> None:
        """End all engines. Idempotent. Raises EngineError if one did not end as it should."""
        await asyncio.gather(*(each.drop() for each in self._models()))

    @asynccontextmanager
    async def use(self, held: Held, remaining_s: float | None, tell: Tell) -> AsyncIterator[Held]:
        """The model, hot for as long as the block runs; readies it first where it is not, and tells how that goes.

        Raises Refusal: NO_ROOM, READY_EXCEEDS_DEADLINE, MODEL_FAILED.
        """
        self.asked(held)
        lasting = _lasting(held)
        until_s = None if remaining_s is None else self._clock() + remaining_s
        while not held.hot:
            move = self.ready(held)
            self._in_time(move, until_s)
            async with aclosing(move.follow()) as news:
                async for progress in news:
                    await tell(progress)
        began_s = self._clock()
        # No await since it was seen hot: nobody moves it in between.
        async with AsyncExitStack() as stack:
            for each in lasting:
                each.used_at_s = self._clock()
                await stack.enter_async_context(each.running.request(None))
            try:
                yield held
            finally:
                for each in lasting:
                    each.used_at_s = self._clock()
                    each.ran(each.used_at_s - began_s)

    def asked(self, held: Held) -> None:
        """Somebody wants it: its demand goes up, and with an adapter's its base's."""
        for each in _lasting(held):
            each.demand.add(self._clock())

    def ready(self, held: Held) -> Move:
        """The move that makes it hot, the one under way or a new one. Not for one that is hot. Raises Refusal."""
        if (move := self._moves.get(held.name)) is not None:
            return move
        self._refuse(held)
        if held.base is not None and not held.base.hot:
            self.ready(held.base)
        victims = self._make_room(held)
        expected_s = self._expected_s(held, held.residency)
        move = self._moves[held.name] = Move(held.name, expected_s, self._clock)
        held.moving_to = Residency.HOT
        for victim in victims:
            self._leave(victim, Residency.ASLEEP)
            self._metrics.evictions.labels(victim.name).inc()
        self._spawn(self._run(move, held, victims))
        self._on_change()
        return move

    def pin(self, names: frozenset[str]) -> None:
        """These models and no others are never put to sleep. `chat` pins all its versions, `chat@1` one."""
        for held in self:
            # A pinned adapter stays hot, and so does its base.
            pinned = any(_is_named(each, names) for each in (held, *held.adapters))
            if pinned != held.pinned:
                log.info("pinned" if pinned else "unpinned", extra={"model": held.name})
            held.pinned = pinned

    async def put_away(self, held: Held, to: Residency, grace_s: float | None) -> None:
        """Move a model out of the way: to sleep where its engine can, or out of memory. Once it is, nothing happens.

        Waits for what runs on it, for `grace_s` at most (None: until it has ended); then that goes on elsewhere.
        Raises Refusal: MODEL_PINNED, MODEL_MOVING, MODEL_FAILED.
        """
        if held.pinned:
            text = f"the model {held.name!r} is pinned; delete its pin first (Consul KV, stoker/pins/{held.name})"
            raise Refusal(Code.FAILED_PRECONDITION, text, reason="MODEL_PINNED")
        if held.moving_to is not None:
            text = f"the model {held.name!r} is on its way to {held.moving_to.value}; ask again when it is there"
            raise unavailable(text, retry_after_s=1.0, reason="MODEL_MOVING")
        if held.residency in (Residency.STAGED, Residency.LISTED, to):
            return
        self._leave(held, to)
        self._on_change()
        failed = await asyncio.shield(self._spawn(self._put_away(held, to, grace_s)))
        if failed is not None:
            raise failed

    async def _put_away(self, held: Held, to: Residency, grace_s: float | None) -> Refusal | None:
        """Returns what the caller is to hear: raised here, it would end all other moves with it."""
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
                await self._bring(held, move.tell)
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
            del self._moves[held.name]
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
                async with aclosing(self.ready(base).follow()) as news:
                    async for progress in news:
                        move.tell(progress.activity)
            async with base.steady:
                if base.hot:
                    yield
                    return

    async def _bring(self, held: Held, tell: Callable[[str], None]) -> None:
        was, began_s = held.residency, self._clock()
        await held.bring(tell)
        took_s = self._clock() - began_s
        self._failures.forget(held.name)
        (self._times if held.base is None else self._adapter_times).observe(held.name, was, took_s)
        self._metrics.load_seconds.labels(held.name, was.value).observe(took_s)
        log.info("a model is hot", extra={"model": held.name, "was": was.value, "took_s": round(took_s, 2)})

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
        asleep = sorted((each for each in self if each.residency is Residency.ASLEEP), key=lambda each: each.used_at_s)
        for each in asleep[: max(0, len(asleep) - self._max_asleep)]:
            if each.moving_to is None:
                await each.put(Residency.STAGED)
                self._on_change()

    def _leave(self, held: Held, to: Residency) -> None:
        held.moving_to = to if _sleeps(held) or to is not Residency.ASLEEP else Residency.STAGED
        held.running.close(held.left)

    def _make_room(self, wanted: Held) -> list[Held]:
        """Who makes room for it. Raises Refusal if nobody does."""
        hot, limits = self._awake(wanted), self._limits
        if wanted.base is not None and wanted.base.info is not None:
            # What an engine that takes none says of one more is clearer than what could be said here.
            limits = Limits(max_hot=max(1, wanted.base.info.max_adapters))
        elif wanted.base is not None:
            limits = Limits(max_hot=len(wanted.base.adapters))
        room = make_room(self._seat(wanted), hot, limits, self._clock())
        if room.refused:
            retry_s = None if room.retry_after_s is None else max(_SHORTEST_RETRY_S, room.retry_after_s)
            text = f"no room for the model {wanted.name!r} on this server now: {room.refused}"
            raise exhausted(text, retry_after_s=retry_s, reason="NO_ROOM")
        return [self._held[name] for name in room.victims]

    def _awake(self, but: Held) -> list[Seat]:
        """Who competes with it for room."""
        return [self._seat(each) for each in self if each.awake and each is not but and each.base is but.base]

    def _seat(self, held: Held) -> Seat:
        now_s = self._clock()
        back = held.residency
        if back is Residency.HOT:
            back = Residency.ASLEEP if _sleeps(held) else Residency.STAGED
        return Seat(
            held.name,
            held.spec.share,
            pinned=held.pinned,
            moving=held.moving_to is not None,
            users=len(held.running),
            demand_per_s=held.demand.per_s(now_s),
            watched_s=held.demand.watched_s(now_s),
            used_at_s=held.used_at_s,
            hot_since_s=held.hot_since_s,
            ready_s=self._expected_s(held, back) or 0.0,
            request_s=held.request_s,
        )

    def _models(self) -> Iterator[Held]:
        """Those that have an engine of their own: all but adapters."""
        return (each for each in self if each.base is None)

    def _expected_s(self, held: Held, where: Residency) -> float | None:
        """How long it takes to be hot from there, an adapter with what its base takes; None where nobody knows."""
        base = held.base
        if base is None:
            return self._times.expected_s(held.name, where)
        own_s = self._adapter_times.expected_s(held.name, where)
        if base.hot:
            return own_s
        base_s = self._times.expected_s(base.name, base.residency)
        return None if base_s is None else base_s + (own_s or 0.0)

    def _refuse(self, held: Held) -> None:
        """Raises Refusal if it cannot be readied at the moment, whoever has room."""
        if self._tasks is None:
            raise unavailable("this server starts or leaves; ask another", retry_after_s=1.0, reason="SERVER_DRAINING")
        if held.moving_to is not None:
            text = f"the model {held.name!r} is on its way out of this server's memory"
            raise exhausted(text, retry_after_s=0.5, reason="NO_ROOM")
        self._failures.check(held.name)

    def _in_time(self, move: Move, until_s: float | None) -> None:
        remaining_s = move.progress.remaining_s
        if until_s is None or remaining_s is None or self._clock() + remaining_s <= until_s:
            return
        text = f"the model {move.model!r} is being readied and needs {remaining_s:.1f} s more, longer than the deadline"
        raise exhausted(text, retry_after_s=max(_SHORTEST_RETRY_S, remaining_s), reason="READY_EXCEEDS_DEADLINE")

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


def _is_named(held: Held, names: frozenset[str]) -> bool:
    return held.name in names or held.name.partition("@")[0] in names


def _lasting(held: Held) -> Sequence[Held]:
    """What has to stay hot for as long as it is in use."""
    return (held,) if held.base is None else (held.base, held)


def _sleeps(held: Held) -> bool:
    return held.base is None and held.info is not None and held.info.sleeps


def _again(refusal: Refusal) -> Refusal:
    """Made anew: an exception carries the traceback of the one who raised it."""
    return Refusal(
        refusal.code,
        refusal.message,
        reason=refusal.reason,
        field=refusal.field,
        retry_after_s=refusal.retry_after_s,
    )
