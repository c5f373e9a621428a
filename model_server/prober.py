"""Feeds the liveness machine: reads the engine and the device at every tick, and runs the probes it asks for."""

import asyncio
import itertools
from collections.abc import Callable
from contextlib import aclosing

from model_server.engine import DeviceLost, Engine, EngineDead, EngineError, EngineRequest
from model_server.liveness import Liveness
from model_server.meter import Meter
from model_server.record import Device, Usage
from stoker.v1 import generation_pb2
from stoker_common.clock import Clock

# The measuring prompt is long enough to see the rate, and short enough to cost a CPU less than a second.
_MEASURED_PROMPT_TOKENS = 256
_MEASURED_TOKENS = 8
# Coprime to the vocabularies in use, so that the prompt's ids are spread over it.
_STRIDE = 7919
# NVML takes about a millisecond a GPU, and shares of shorter times say little.
_DEVICE_EVERY_S = 1.0
# `Engine.check` reads a flag. One that hangs must not keep us from reading the step counter.
_CHECK_WITHIN_S = 1.0


class Prober:
    """Watches one engine. `usage` is the device's latest reading."""

    def __init__(
        self, engine: Engine, liveness: Liveness, meter: Meter, device: Device, *, tick_s: float, clock: Clock
    ) -> None:
        self._engine = engine
        self._liveness = liveness
        self._meter = meter
        self._device = device
        self._tick_s = tick_s
        self._clock = clock
        self._serial = itertools.count(1)
        self._probe_ended = asyncio.Event()
        self._device_read_at = -_DEVICE_EVERY_S
        self.usage = Usage()

    async def run_until_started(self) -> None:
        """Watch until the first probe came back, or the state is final."""
        await self._run_until(lambda: self._liveness.started or self._liveness.state.failed)

    async def run_until_failed(self) -> None:
        """Watch until the state is final."""
        await self._run_until(lambda: self._liveness.state.failed)

    async def _run_until(self, done: Callable[[], bool]) -> None:
        async with asyncio.TaskGroup() as tasks:
            probe: asyncio.Task[None] | None = None
            while not done():
                await self._read()
                if self._liveness.probe_due():
                    self._liveness.probe_began()
                    self._probe_ended.clear()
                    probe = tasks.create_task(self._probe())
                if not done():
                    await self._tick(wakes=probe is not None and not probe.done())
            if probe is not None:
                probe.cancel()

    async def _tick(self, *, wakes: bool) -> None:
        """Until the next reading is due; a probe that ends makes it due."""
        try:
            async with asyncio.timeout(self._tick_s):
                await (self._probe_ended if wakes else asyncio.Event()).wait()
        except TimeoutError:
            return

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(_CHECK_WITHIN_S):
                await self._engine.check()
            self._read_device()
        except EngineError as error:
            self._dead(error)
        except TimeoutError:
            pass  # The step counter below tells whether it lives.
        self._liveness.read(self._clock(), steps=self._engine.load().steps, busy=self._meter.busy)

    def _read_device(self) -> None:
        now = self._clock()
        if now - self._device_read_at >= _DEVICE_EVERY_S:
            self._device_read_at = now
            self.usage = self._device.read()

    def _dead(self, error: EngineError) -> None:
        if isinstance(error, DeviceLost):
            self._liveness.device_lost(str(error))
        else:
            self._liveness.died(str(error))

    async def _probe(self) -> None:
        try:
            await self._generate((1,), 1)
            if not self._liveness.started:
                # The first one paid for what is set up with the first step; this one tells how fast the engine is.
                await self._measure()
        except EngineDead as error:
            self._dead(error)
        except EngineError as error:
            self._liveness.probe_failed(str(error))
        else:
            self._liveness.probe_came_back()
        finally:
            self._probe_ended.set()

    async def _measure(self) -> None:
        info = self._engine.info
        length = min(_MEASURED_PROMPT_TOKENS, info.max_model_tokens // 2)
        ids = tuple(1 + place * _STRIDE % (info.vocabulary - 1) for place in range(length))
        began, first, last, later_tokens = await self._generate(ids, _MEASURED_TOKENS)
        self._meter.measured(
            prompt_tokens=length, prefill_s=first - began, later_tokens=later_tokens, later_s=last - first
        )

    async def _generate(self, ids: tuple[int, ...], max_tokens: int) -> tuple[float, float, float, int]:
        """When it began, when first and last output came, and how many tokens came after the first output."""
        request = EngineRequest(
            request_id=f"probe-{next(self._serial)}",
            prompt_token_ids=ids,
            sampling=generation_pb2.Sampling(temperature=0.0, ignore_eos=True),
            max_tokens=max_tokens,
        )
        began = self._clock()
        first: float | None = None
        last, later_tokens, finished = began, 0, False
        async with aclosing(self._engine.generate(request)) as outputs:
            async for output in outputs:
                last = self._clock()
                finished = bool(output.finish_reason)
                if first is None:
                    first = last
                else:
                    later_tokens += len(output.token_ids)
        if first is None or not finished:
            raise EngineError("it ended without an output")
        return began, first, last, later_tokens
