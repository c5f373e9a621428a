"""The simulated engine: a deterministic model of a continuously batching server, driven by timers, without tasks.

A step is one timer, and between steps nothing runs: an idle engine costs nothing, and hundreds share a machine.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from model_server.engine import (
    DeviceLost,
    EngineDead,
    EngineError,
    EngineInfo,
    EngineLoad,
    EngineOutput,
    EngineRequest,
    ResumeMode,
    Take,
)
from model_server.engines.adapters import Adapters
from model_server.engines.sim_clock import SimClock, Timer
from model_server.engines.sim_draw import mix
from model_server.engines.sim_faults import Faults, FaultsFile, InjectedError
from model_server.engines.sim_prompt import encode
from model_server.engines.sim_refuse import refuse_invalid, refuse_unsupported
from model_server.engines.sim_scheduler import Scheduler, Step, step_seconds
from model_server.engines.sim_settings import SimSettings
from model_server.engines.sim_stream import SimStream
from model_server.engines.sim_tokenizer import SimTokenizer
from model_server.engines.sim_waits import Waits
from model_server.handing import handed
from stoker.v1 import generation_pb2, inference_pb2

# Both change whenever the same request would give other tokens.
VERSION = "1"
NUMERICS_CLASS = "sim-1"


class SimEngine:
    """An Engine whose tokens are hashes and whose time is made of settings. Faults change it while it runs."""

    def __init__(
        self,
        model: str,
        settings: SimSettings | None = None,
        *,
        faults: Faults | None = None,
        clock: SimClock | None = None,
    ) -> None:
        """`clock`: the running event loop if none is given."""
        self.settings = settings or SimSettings()
        self.faults = faults or Faults()
        self._model = model
        self._clock = clock
        self._tokenizer = SimTokenizer(self.settings.vocabulary)
        self._scheduler: Scheduler[SimStream] = Scheduler(self.settings)
        # In order of arrival; a set would fail them in another order each time.
        self._streams: dict[SimStream, None] = {}
        self._step: Step[SimStream] | None = None
        self._due = 0.0
        self._step_timer: Timer | None = None
        self._poll_timer: Timer | None = None
        self._adapters: Adapters[None] = Adapters(self.settings.max_adapters)
        self._waits = Waits()
        self._started = False
        self._loaded = False
        self._asleep = False
        self._stopped = False
        self._death: type[EngineDead] | None = None
        self._why_dead = ""
        self._steps = 0
        self._requests = 0
        path = self.settings.faults_file
        self._faults_file = FaultsFile(path, self.faults) if path else None

    @property
    def info(self) -> EngineInfo:
        """What the engine is."""
        settings = self.settings
        return EngineInfo(
            engine="sim",
            version=VERSION,
            model=self._model,
            max_model_tokens=settings.max_model_tokens,
            vocabulary=settings.vocabulary,
            max_streams=settings.max_streams,
            kv_tokens=settings.kv_blocks * settings.block_tokens,
            step_tokens=settings.max_batched_tokens,
            block_tokens=settings.block_tokens,
            accelerator=settings.accelerator,
            accelerator_count=settings.accelerator_count,
            accelerator_memory_bytes=settings.accelerator_memory_bytes,
            numerics_class=NUMERICS_CLASS,
            resume_modes=tuple(ResumeMode),
            exact_modes=(ResumeMode.REPLAY, ResumeMode.RESTORE),
            sleeps=settings.sleeps,
            prefix_cache=settings.prefix_cache,
            max_adapters=settings.max_adapters,
        )

    async def start(self) -> None:
        """Take as long as loading takes. Raises EngineDead if the engine dies or is stopped meanwhile."""
        if self._started or self._stopped:
            raise EngineError("the engine was started before; make a new one")
        self._started = True
        self._clock = self._clock or asyncio.get_running_loop()
        self.faults.listen(self._faults_changed)
        self._poll_faults()
        self._faults_changed()
        await self._take(self.settings.load_ms)
        self._loaded = True

    async def encode(self, generation: generation_pb2.Generation) -> list[int]:
        """The prompt's token ids. See `sim_prompt.encode`."""
        return await encode(generation, self._tokenizer, self.settings)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        """Generate. See Engine.generate; InjectedError where the faults say so."""
        stream = self._submit(request)
        try:
            with self._adapters.using(request.adapter):
                while True:
                    output = await stream.read()
                    yield output
                    if output.finish_reason != inference_pb2.FINISH_REASON_UNSPECIFIED:
                        return
        finally:
            self._forget(stream)

    async def run(self, request: EngineRequest, take: Take) -> None:
        """See Engine.run."""
        await handed(self.generate(request), take)

    def load(self) -> EngineLoad:
        """The figures of this moment."""
        scheduler = self._scheduler
        return EngineLoad(self._steps, len(scheduler.running), len(scheduler.waiting), scheduler.kv_usage)

    async def check(self) -> None:
        """Raise EngineDead (DeviceLost) if the engine is dead."""
        if self._death is not None:
            raise self._death(self._why_dead)

    async def sleep(self) -> None:
        """Take as long as going to sleep takes; the KV cache is empty afterwards, and the adapters are gone."""
        await self._check_loaded()
        busy = bool(self._streams) or self._adapters.loading
        if not self.settings.sleeps or self._asleep or busy:
            why = "runs something" if busy else "sleeps already" if self._asleep else "cannot sleep"
            raise EngineError(f"the engine {why}")
        self._asleep = True
        self._adapters.take_all()
        await self._take(self.settings.sleep_ms)
        self._scheduler = Scheduler(self.settings)

    def dropped(self) -> Sequence[int]:
        """Nothing: what routers are told of its cache is estimated."""
        return ()

    async def wake(self) -> None:
        """Take as long as waking takes."""
        await self._check_loaded()
        if not self._asleep:
            raise EngineError("the engine does not sleep")
        await self._take(self.settings.wake_ms)
        self._asleep = False

    async def add_adapter(self, name: str, source: str) -> None:
        """Take as long as loading an adapter takes. Its tokens are others than the model's; no file is read."""
        await self._check_awake()
        with self._adapters.adding(name):
            await self._take(self.settings.adapter_load_ms)
            self._adapters.hold(name, None)

    async def drop_adapter(self, name: str) -> None:
        """See Engine.drop_adapter."""
        await self._check_awake()
        self._adapters.take(name)

    async def stop(self) -> None:
        """End the engine; streams that still run raise EngineDead."""
        self._stopped = True
        self._die(EngineDead, "the engine was stopped")

    async def _check_loaded(self) -> None:
        await self.check()
        if not self._loaded:
            raise EngineError("the engine is not started")

    async def _check_awake(self) -> None:
        await self._check_loaded()
        if self._asleep:
            raise EngineError("the engine sleeps")

    async def _take(self, milliseconds: float) -> None:
        """Let so much of the engine's time pass. Raises EngineDead if it dies or is stopped meanwhile."""
        await self.check()
        await self._waits.take(self._clock or asyncio.get_running_loop(), milliseconds / 1000)
        await self.check()

    def _submit(self, request: EngineRequest) -> SimStream:
        if self._death is not None:
            raise self._death(self._why_dead)
        if not self._loaded or self._clock is None:
            raise EngineError("the engine is not started")
        if self._asleep:
            raise EngineError("the engine sleeps")
        self._adapters.check(request.adapter)
        refuse_unsupported(request)
        refuse_invalid(request, self.settings)
        self._requests += 1
        # Any key does, so long as each request's draw is its own.
        if mix(0, self._requests) < self.faults.current.error_rate * 2**64:
            raise InjectedError("a fault was injected: error_rate")
        now = self._clock.time()
        stream = SimStream(request, self.settings, self._tokenizer, now)
        if stream.finished:  # By what was emitted elsewhere.
            return stream
        self._streams[stream] = None
        self._scheduler.add(stream)
        self._begin_step(now)
        return stream

    def _forget(self, stream: SimStream) -> None:
        self._streams.pop(stream, None)
        self._scheduler.end(stream)

    def _begin_step(self, at: float) -> None:
        """Begin the next step, at a time that is now or has just passed, unless one is under way or none is needed."""
        faults = self.faults.current
        if self._step is not None or faults.stall or self._death is not None or self._clock is None:
            return
        step = self._step = self._scheduler.plan()
        if step is None:
            return
        for stream, _ in step.prefills:
            if stream.queue_ms is None:
                stream.queue_ms = max(0.0, at - stream.arrived_at) * 1000
        self._due = at + step_seconds(self.settings, step) * faults.slow_factor
        self._step_timer = self._clock.call_at(self._due, self._end_step)

    def _end_step(self) -> None:
        step, clock = self._step, self._clock
        self._step_timer = None
        if step is None or clock is None:
            return
        self._step = None
        self._steps += 1
        for stream in self._scheduler.apply(step):
            if stream.prefill_ms is None:
                stream.prefill_ms = (self._due - stream.arrived_at) * 1000 - (stream.queue_ms or 0.0)
            stream.advance()
            if stream.finished:
                self._forget(stream)
        # A timer that fires late by less than a step must not make the engine slower than it is set to be.
        now = clock.time()
        late = now - self._due
        self._begin_step(self._due if late < step_seconds(self.settings, step) else now)

    def _faults_changed(self) -> None:
        faults = self.faults.current
        if faults.device_lost:
            self._die(DeviceLost, "a fault was injected: device_lost")
        elif faults.dead:
            self._die(EngineDead, "a fault was injected: dead")
        elif self._death is None and self._clock is not None:
            if faults.stall:
                self._cancel_step_timer()
            elif self._step is None:
                self._begin_step(self._clock.time())
            elif self._step_timer is None:
                self._step_timer = self._clock.call_at(self._due, self._end_step)

    def _die(self, death: type[EngineDead], why: str) -> None:
        if self._death is not None:
            return
        self._death, self._why_dead = death, why
        self._cancel_step_timer()
        self._step = None
        if self._poll_timer is not None:
            self._poll_timer.cancel()
        self._waits.end()
        for stream in list(self._streams):
            stream.fail(death(why))
            self._forget(stream)

    def _cancel_step_timer(self) -> None:
        if self._step_timer is not None:
            self._step_timer.cancel()
            self._step_timer = None

    def _poll_faults(self) -> None:
        if self._faults_file is None or self._clock is None:
            return
        self._faults_file.poll()
        if self._death is None:
            when = self._clock.time() + self.settings.faults_poll_ms / 1000
            self._poll_timer = self._clock.call_at(when, self._poll_faults)
