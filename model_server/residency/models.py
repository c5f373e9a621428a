"""The models of a server and where each is: readies them when asked, once however many ask, and makes room for them.

State changes synchronously; the moves then run (`mover`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from discovery.endpoint import ModelState, Residency
from model_server.engine import EngineError, EngineInfo, EngineLoad
from model_server.liveness import Liveness
from model_server.meter import Meters
from model_server.record import Usage
from model_server.residency.failures import Failures
from model_server.residency.held import Held, NotAnswering
from model_server.residency.metrics import ResidencyMetrics
from model_server.residency.move import Move, Progress
from model_server.residency.mover import Mover
from model_server.residency.room import Limits, Price
from model_server.residency.seats import SHORTEST_RETRY_S, Seats
from model_server.residency.together import info_of, load_of
from stoker_common.clock import Clock
from stoker_common.refusal import Code, Refusal, exhausted, not_found, unavailable

log = logging.getLogger(__name__)

Tell = Callable[[Progress], Awaitable[None]]


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
        self._clock = clock
        self._seats = Seats(self._held, limits, clock)
        self._failures = Failures(clock)
        self._mover = Mover(
            self._held.values(),
            self._seats,
            self._failures,
            metrics,
            self.ready,
            max_asleep=max_asleep,
            clock=clock,
            on_change=on_change,
        )
        self.meters = Meters([each.meter for each in held if each.base is None])
        metrics.watch(self.states)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    @property
    def info(self) -> EngineInfo:
        """What the server's engines are together. Valid after `start`. Raises EngineError before a model was loaded."""
        return info_of(self)

    def load(self) -> EngineLoad:
        """The engines' figures together."""
        return load_of(self)

    def room(self) -> Price:
        """What room for a model that is not hot would cost now, for the largest of them. Nothing where all are hot."""
        return self._seats.price()

    def usage(self) -> Usage:
        """The device's latest reading."""
        return next((each.prober.usage for each in self if each.prober is not None), Usage())

    def states(self) -> tuple[ModelState, ...]:
        """Where each model is, in the order of the settings."""
        return tuple(self.state(each) for each in self)

    def state(self, held: Held) -> ModelState:
        """Where one of them is."""
        return held.state(self._seats.expected_s(held, held.residency))

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
        hot: list[Held] = []
        for held in self._models():
            if not self._seats.first(held, hot):
                continue
            hot.append(held)
            log.info("loading", extra={"model": held.name})
            try:
                await self._mover.bring(held, lambda activity: None)
            except NotAnswering as error:
                return error.liveness
        if not hot:
            raise EngineError("no model may be hot: raise max_hot or memory_budget, or lower the models' shares")
        return None

    async def run(self) -> Liveness:
        """Watch the engines and run the moves, until an engine has failed: returns how."""
        return await self._mover.run()

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
        if (move := self._mover.moves.get(held.name)) is not None:
            return move
        self._refuse(held)
        if held.base is not None and not held.base.hot:
            self.ready(held.base)
        victims = self._seats.make_room(held)
        return self._mover.begin(held, victims, self._seats.expected_s(held, held.residency))

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
        failed = await self._mover.put_away(held, to, grace_s)
        if failed is not None:
            raise failed

    def _models(self) -> Iterator[Held]:
        """Those that have an engine of their own: all but adapters."""
        return (each for each in self if each.base is None)

    def _refuse(self, held: Held) -> None:
        """Raises Refusal if it cannot be readied at the moment, whoever has room."""
        if not self._mover.runs:
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
        raise exhausted(text, retry_after_s=max(SHORTEST_RETRY_S, remaining_s), reason="READY_EXCEEDS_DEADLINE")


def _is_named(held: Held, names: frozenset[str]) -> bool:
    return held.name in names or held.name.partition("@")[0] in names


def _lasting(held: Held) -> Sequence[Held]:
    """What has to stay hot for as long as it is in use."""
    return (held,) if held.base is None else (held.base, held)
