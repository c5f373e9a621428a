"""One of a server's models: its engine while it has one, what is measured of it, and how it is moved."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from discovery.endpoint import ModelState, Residency
from model_server.admission import Admission
from model_server.digest import Digest
from model_server.engine import Engine, EngineError, EngineInfo, EngineLoad
from model_server.inflight import InFlight
from model_server.liveness import Liveness, LivenessRules
from model_server.meter import Meter
from model_server.prefixes import CachedPrefixes
from model_server.prober import Prober
from model_server.record import Device
from model_server.residency.demand import Demand
from model_server.residency.spec import ModelSpec
from stoker_common.clock import Clock
from stoker_common.refusal import Refusal, unavailable

# A dead engine may not even stop; vLLM kills its processes after 15 s itself.
_STOP_WITHIN_S = 20.0
# Of how long a request ran, in the mean: settles within some fifty of them.
_REQUEST_WEIGHT = 1 / 16
# Who is told that the model goes away asks elsewhere at once.
_RETRY_ELSEWHERE_S = 0.1


class NotAnswering(EngineError):
    """The engine started and its first probe did not come back as it should; `liveness` says how."""

    def __init__(self, liveness: Liveness) -> None:
        super().__init__(liveness.reason)
        self.liveness = liveness


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all models of a server share."""

    in_flight: InFlight
    max_waiting: int
    rules: LivenessRules
    device: Device
    tick_s: float
    clock: Clock
    digest: Digest = field(default_factory=Digest)


class Held:
    """A model and where it is. `Models` decides when it moves, one move at a time."""

    def __init__(self, spec: ModelSpec, around: Surroundings) -> None:
        self.spec = spec
        self.name = spec.name
        self.residency = Residency.STAGED if spec.staged() else Residency.LISTED
        # While it moves: where to. Requests for it wait then, though it may still be hot.
        self.moving_to: Residency | None = None
        self.engine: Engine | None = None
        # What the engine was when there was one last.
        self.info: EngineInfo | None = None
        # What is known of its engine's prefix cache; None without one.
        self.cache: CachedPrefixes | None = None
        self.pinned = False
        # Of a LoRA adapter: the model that it belongs to. Of a model: its adapters, which go where its engine goes.
        self.base: Held | None = None
        self.adapters: list[Held] = []
        # Held by who needs its engine to stay as it is: who moves it, and who loads an adapter into it.
        self.steady = asyncio.Lock()
        self.demand = Demand(around.clock())
        self.used_at_s = self.hot_since_s = around.clock()
        # How long its requests run, on average; 0 before the first has ended.
        self.request_s = 0.0
        self.meter = Meter(around.clock, self._batch_is_full)
        self.admission = Admission(
            around.in_flight,
            max_streams=lambda: self.info.max_streams if self.info else 0,
            max_waiting=around.max_waiting,
            drain_s=self._queue_s,
        )
        # What runs on it, beside the server's own count, so that it can be waited for alone.
        self.running = InFlight(self.left)
        self.prober: Prober | None = None
        self.liveness: Liveness | None = None
        self._around = around
        self._steps_before = 0

    def ran(self, took_s: float) -> None:
        """A request ran on it for so long."""
        self.request_s += (took_s - self.request_s) * (_REQUEST_WEIGHT if self.request_s else 1.0)

    @property
    def hot(self) -> bool:
        """Whether it answers now."""
        return self.residency is Residency.HOT and self.moving_to is None

    @property
    def awake(self) -> bool:
        """Whether it takes the memory of a hot model, or is about to."""
        return Residency.HOT in (self.residency, self.moving_to)

    @property
    def sleeps(self) -> bool:
        """Whether it can go to sleep. An adapter cannot: an engine lets go of it."""
        return self.base is None and self.info is not None and self.info.sleeps

    def state(self, ready_s: float | None) -> ModelState:
        """Where it is, for the catalog; on its way out it is where it goes to."""
        leaving = self.moving_to is not None and self.residency is Residency.HOT
        where = self.moving_to if leaving and self.moving_to is not None else self.residency
        most = self.info.max_model_tokens if self.info else self.spec.max_model_tokens
        ready_ms = 0.0 if where is Residency.HOT else _two_digits((ready_s or 0.0) * 1e3)
        return ModelState(self.name, where, most, ready_ms)

    def load(self) -> EngineLoad:
        """Its engine's figures. Steps never go back, whatever engines it had."""
        if self.engine is None or self.residency is not Residency.HOT:
            return EngineLoad(steps=self._steps_before + (self.engine.load().steps if self.engine else 0))
        load = self.engine.load()
        return EngineLoad(self._steps_before + load.steps, load.running, load.waiting, load.kv_usage)

    async def bring(self, tell: Callable[[str], None]) -> None:
        """Make it hot; it answers when this returns. `tell` hears what is done. Raises EngineError, and is unloaded."""
        try:
            await self._bring(tell)
        except EngineError:
            await self.drop()
            raise
        self.residency = Residency.HOT
        self.used_at_s = self.hot_since_s = self._around.clock()
        self.running.open()

    async def _bring(self, tell: Callable[[str], None]) -> None:
        if self.residency is Residency.ASLEEP and self.engine is not None:
            tell("waking")
            await self.engine.wake()
        else:
            tell("loading weights")
            self.engine = self.spec.make()
            await self.engine.start()
            self.info = self.engine.info
        tell("waiting for the first probe")
        around = self._around
        self.liveness = Liveness(around.rules, around.clock())
        self.prober = Prober(
            self.engine, self.liveness, self.meter, around.device, tick_s=around.tick_s, clock=around.clock
        )
        await self.prober.run_until_started()
        if self.liveness.state.failed:
            raise NotAnswering(self.liveness)
        if self.engine.info.prefix_cache:
            self.cache = around.digest.cache(self.engine.info.kv_tokens, self.engine.info.block_tokens)

    async def put(self, to: Residency) -> None:
        """Move it out of the way; nothing may run on it. Where the engine cannot sleep, it is unloaded instead."""
        self.prober = self.liveness = None
        self._forget()
        if to is Residency.ASLEEP and self.engine is not None and self.info is not None and self.info.sleeps:
            if self.residency is Residency.HOT:
                try:
                    await self.engine.sleep()
                except EngineError:
                    await self.drop()
                    raise
                self.residency = Residency.ASLEEP
            return
        await self.drop()

    async def drop(self) -> None:
        """Unload it. Nothing happens if it has no engine. Raises EngineError if that does not end."""
        engine, self.engine = self.engine, None
        self._forget()
        if engine is not None:
            self._steps_before += engine.load().steps
            # What was loaded once lies on the disk, also where a hub's cache holds it.
            self.residency = Residency.STAGED if self.info is not None or self.spec.staged() else Residency.LISTED
            try:
                async with asyncio.timeout(_STOP_WITHIN_S):
                    await engine.stop()
            except TimeoutError:
                raise EngineError(f"the engine of {self.name!r} did not end within {_STOP_WITHIN_S:g} s") from None

    def _forget(self) -> None:
        """Its cache and its adapters are gone: an engine that sleeps drops them."""
        for adapter in self.adapters:
            adapter.gone()
        if self.cache is not None:
            self._around.digest.forget(self.cache)
            self.cache = None

    def gone(self) -> None:
        """Of an adapter: the engine that held it does so no more."""

    def left(self) -> Refusal:
        """What a request hears that finds it gone."""
        text = f"the model {self.name!r} was moved out of this server's memory; ask a router, or again"
        return unavailable(text, retry_after_s=_RETRY_ELSEWHERE_S, reason="MODEL_LEAVING")

    def _queue_s(self) -> float:
        """How long what waits is expected to take; 1 s while the engine's rate is not known."""
        rate = self.meter.prefill_tokens_per_second
        return self.meter.waiting_prompt_tokens / rate if rate > 0.0 else 1.0

    def _batch_is_full(self) -> bool:
        return self.info is not None and self.load().running >= self.info.max_streams


def _two_digits(ms: float) -> float:
    """Rounded: each figure that changes in the catalog is a write there."""
    return float(f"{ms:.2g}")
