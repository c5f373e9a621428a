"""A model server: its parts, put together. Many fit into one process; nothing is shared but what is passed in."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from discovery.catalog import Registrar
from discovery.endpoint import Endpoint, Load
from model_server.admission import Admission
from model_server.config import ServerSettings
from model_server.engine import Engine
from model_server.generation import Generator
from model_server.inflight import InFlight
from model_server.lifecycle import Lifecycle, Parts
from model_server.link import Links
from model_server.listener import Listener
from model_server.liveness import LifeState, Liveness, LivenessRules
from model_server.meter import Meter
from model_server.metrics import ServerMetrics
from model_server.operations import OperationsService
from model_server.prober import Prober
from model_server.record import Device, Identity, Record, SimulatedDevice, endpoint
from model_server.service import INFERENCE, MODELS, InferenceService, ModelService
from model_server.unregistered import Unregistered
from stoker_common.clock import Clock
from stoker_common.health import Health
from stoker_common.refusal import Refusal, unavailable
from stoker_common.tracing import Tracing, configure

# Often enough to notice a failure soon after its limit, rarely enough to cost nothing.
_LONGEST_TICK_S = 0.25


class ServerFailed(Exception):
    """A server in this process ended before it served, or with an exit code other than 0."""


class ModelServer:
    """One engine behind the API. `run` lives its whole life; `stop` asks it to leave."""

    def __init__(
        self,
        settings: ServerSettings,
        engine: Engine,
        registrar: Registrar | None = None,
        *,
        device: Device | None = None,
        traces: Tracing | None = None,
        registry: CollectorRegistry | None = None,
        epoch: str | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.epoch = epoch or uuid.uuid4().hex
        self.metrics = ServerMetrics(settings.served_model, registry)
        self._clock = clock
        self.liveness = Liveness(_rules(settings), clock())
        self.meter = Meter(clock, self._batch_is_full)
        self.in_flight = InFlight(_starting)
        self.health = Health((INFERENCE, MODELS))
        self.links: Links | None = None
        self._record: Record | None = None
        self._prober = Prober(
            engine, self.liveness, self.meter, device or SimulatedDevice(engine), tick_s=_tick_s(settings), clock=clock
        )
        self._listener = Listener(settings.listen_host, settings.listen_port)
        self._traces = traces or configure("stoker-model-server")
        self._lifecycle = Lifecycle(
            Parts(
                engine=engine,
                registrar=registrar or Unregistered(),
                listener=self._listener,
                health=self.health,
                liveness=self.liveness,
                prober=self._prober,
                meter=self.meter,
                in_flight=self.in_flight,
                listen=self._listen,
                endpoint=self.endpoint,
                goodbye=self._goodbye,
                drain_s=settings.drain_seconds,
            )
        )
        self.metrics.watch(self._load_if_known, lambda: self.liveness.state, lambda: len(self.in_flight))

    async def run(self) -> int:
        """Load, probe, serve, register; until stopped (0) or failed (1). Returns the process's exit code."""
        return await self._lifecycle.run()

    def stop(self) -> None:
        """Drain and leave; a second time, leave at once. Callable from a signal handler of the loop."""
        self._lifecycle.stop()

    async def wait_serving(self) -> None:
        """Wait until it serves. Raises ServerFailed if it ended before."""
        if not await self._lifecycle.wait_serving():
            raise ServerFailed(f"the server ended before it served: {self.liveness.reason}")

    @property
    def stopping(self) -> bool:
        """Whether it was asked to leave, or has left."""
        return self._lifecycle.stopping

    @asynccontextmanager
    async def running(self) -> AsyncIterator["ModelServer"]:
        """Run it beside the block, which begins when it serves; drain it afterwards, unless it leaves already.

        Raises ServerFailed if it never served.
        """
        # Not a TaskGroup: it would wrap what the block raises. The task is waited for below, whatever happens.
        life = asyncio.ensure_future(self.run())
        try:
            await self.wait_serving()
            yield self
        finally:
            # A second stop would be one at once.
            if not self.stopping:
                self.stop()
            await asyncio.wait((life,))
        life.result()

    @property
    def state(self) -> LifeState:
        """The state of its life."""
        return self.liveness.state

    @property
    def port(self) -> int:
        """The port it listens on; the real one once it serves."""
        return self._listener.port

    @property
    def address(self) -> str:
        """Where it is reached: host:port."""
        return self.settings.advertised(self.port)

    def endpoint(self) -> Endpoint:
        """Its record, with the load of this moment. Valid once it serves."""
        if self._record is None:
            raise ServerFailed("the server has no record before it serves")
        return self._record.endpoint()

    async def _listen(self) -> None:
        """Serve gRPC, now that the engine can say what it is."""
        info, settings = self.engine.info, self.settings
        admission = Admission(
            self.in_flight,
            max_streams=lambda: info.max_streams,
            max_waiting=settings.max_waiting,
            drain_s=self._queue_s,
        )
        generator = Generator(
            model=settings.served_model,
            engine=self.engine,
            meter=self.meter,
            metrics=self.metrics,
            admission=admission,
            endpoint=self.endpoint,
            traces=self._traces,
        )
        self.links = Links(generator, self.endpoint, lambda: self.engine.load().steps, self._clock)
        handlers = (
            InferenceService(generator).handlers(),
            ModelService(self.endpoint).handlers(),
            OperationsService(self.endpoint, self.in_flight, self._lifecycle.drain).handlers(),
            self.health.handlers(),
            self.links.handlers(),
        )
        await self._listener.start(handlers, (INFERENCE, MODELS) if settings.reflection else ())
        identity = Identity(settings.id_at(self.port), settings.zone, self.epoch, settings.served_model)
        base = endpoint(identity, info, self.address)
        self._record = Record(base, self.engine, self.meter, lambda: self._prober.usage)

    @property
    def attached_routers(self) -> int:
        """How many router processes have a link to it."""
        return self.links.attached if self.links is not None else 0

    def _goodbye(self, reason: str, grace_s: float) -> None:
        if self.links is not None:
            self.links.goodbye(reason, grace_s)

    def _queue_s(self) -> float:
        """How long what waits is expected to take; 1 s while the engine's rate is not known."""
        rate = self.meter.prefill_tokens_per_second
        return self.meter.waiting_prompt_tokens / rate if rate > 0.0 else 1.0

    def _batch_is_full(self) -> bool:
        return self.engine.load().running >= self.engine.info.max_streams

    def _load_if_known(self) -> Load | None:
        return self._record.load() if self._record is not None else None


def _starting() -> Refusal:
    return unavailable("the server is starting", retry_after_s=1.0, reason="SERVER_STARTING")


def _rules(settings: ServerSettings) -> LivenessRules:
    return LivenessRules(
        probe_interval_s=settings.probe_interval_seconds,
        probe_timeout_s=settings.probe_timeout_seconds,
        stuck_after_s=settings.stuck_after_seconds,
        first_probe_timeout_s=settings.first_probe_timeout_seconds,
        longest_gap_s=4.0 * _tick_s(settings),
    )


def _tick_s(settings: ServerSettings) -> float:
    shortest = min(settings.probe_interval_seconds, settings.probe_timeout_seconds, settings.stuck_after_seconds)
    return min(_LONGEST_TICK_S, shortest / 4.0)
