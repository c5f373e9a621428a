"""A model server: its parts, put together. Many fit into one process; nothing is shared but what is passed in."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from discovery.catalog import Registrar
from discovery.endpoint import Endpoint, Load
from discovery.pins import NoPins, Pins
from model_server.bids import Bids
from model_server.config import ServerSettings
from model_server.digest import Digest
from model_server.direct import DirectStreams
from model_server.engine import Engine, EngineInfo, EngineLoad
from model_server.generation import Generator
from model_server.inflight import InFlight
from model_server.lifecycle import Lifecycle, Parts
from model_server.link import Links
from model_server.listener import Listener
from model_server.liveness import LifeState, Liveness, LivenessRules
from model_server.metrics import ServerMetrics
from model_server.model_service import MODELS, ModelService
from model_server.operations import OperationsService
from model_server.record import Device, Identity, Record, SimulatedDevice, endpoint
from model_server.residency.adapter import hold
from model_server.residency.held import Surroundings
from model_server.residency.metrics import ResidencyMetrics
from model_server.residency.models import Models
from model_server.residency.room import Limits
from model_server.residency.spec import AdapterSpec, ModelSpec
from model_server.service import INFERENCE, InferenceService
from model_server.tickets import TicketCheck
from model_server.unregistered import Unregistered
from stoker_common.clock import Clock
from stoker_common.health import Health
from stoker_common.refusal import Refusal, unavailable
from stoker_common.tickets import TicketKeys
from stoker_common.tracing import Tracing, configure

# Often enough to notice a failure soon after its limit, rarely enough to cost nothing.
_LONGEST_TICK_S = 0.25


class ServerFailed(Exception):
    """A server in this process ended before it served, or with an exit code other than 0."""


class ModelServer:
    """One or more models behind the API. `run` lives its whole life; `stop` asks it to leave."""

    def __init__(
        self,
        settings: ServerSettings,
        engine: Engine | Sequence[ModelSpec | AdapterSpec],
        registrar: Registrar | None = None,
        *,
        pins: Pins | None = None,
        device: Device | None = None,
        traces: Tracing | None = None,
        registry: CollectorRegistry | None = None,
        epoch: str | None = None,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """`engine`: the one of `settings.model`, or what may be served, of which the first ones are hot at first.

        `settle` is called once, when all that is loaded at the start is there and before anybody is served.
        """
        specs = engine if isinstance(engine, Sequence) else [ModelSpec(settings.served_model, lambda: engine)]
        self.settings = settings
        self._wall_clock = wall_clock
        self._settle = settle
        self.epoch = epoch or uuid.uuid4().hex
        self.metrics = ServerMetrics([spec.name for spec in specs], registry)
        self._clock = clock
        self.liveness = Liveness(_rules(settings), clock())
        self.in_flight = InFlight(_starting)
        self.health = Health((INFERENCE, MODELS))
        self.links: Links | None = None
        self.digest = Digest()
        self._record: Record | None = None
        around = Surroundings(
            in_flight=self.in_flight,
            max_waiting=settings.max_waiting,
            rules=_rules(settings),
            device=device or SimulatedDevice(self),
            tick_s=_tick_s(settings),
            clock=clock,
            digest=self.digest,
        )
        self.models = Models(
            hold(specs, around),
            Limits(settings.max_hot, settings.memory_budget),
            ResidencyMetrics(self.metrics.registry),
            max_asleep=settings.max_asleep,
            clock=clock,
            on_change=self._models_changed,
        )
        self._registrar = registrar or Unregistered()
        self._listener = Listener(settings.listen_host, settings.listen_port, settings.http2, self.metrics.registry)
        self._traces = traces or configure("stoker-model-server")
        self._lifecycle = Lifecycle(
            Parts(
                models=self.models,
                registrar=self._registrar,
                pins=pins or NoPins(),
                listener=self._listener,
                health=self.health,
                liveness=self.liveness,
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
        """Serve gRPC, now that the engines can say what they are."""
        self._settle()
        direct, keys = DirectStreams(self._clock), TicketKeys.parse(self.settings.ticket_key.get_secret_value())
        generator = Generator(
            models=self.models,
            metrics=self.metrics,
            endpoint=self.endpoint,
            traces=self._traces,
            tickets=TicketCheck(keys, self.endpoint, self._wall_clock),
            direct=direct,
        )
        bids = Bids(lambda: self.models.meters.waiting_prompt_tokens)
        self.links = Links(
            generator, direct, self.endpoint, lambda: self.models.load().steps, self.digest, self._clock, bids
        )
        handlers = (
            InferenceService(generator).handlers(),
            ModelService(self.endpoint, self.models).handlers(),
            OperationsService(self.endpoint, self.in_flight, self._lifecycle.drain).handlers(),
            self.health.handlers(),
            self.links.handlers(),
        )
        await self._listener.start(handlers, (INFERENCE, MODELS) if self.settings.reflection else ())
        self._record = Record(
            self._base(), self.models, self.models.meters, self.models.usage, self.models.room, lambda: bids.cached
        )

    def _base(self) -> Endpoint:
        settings = self.settings
        identity = Identity(settings.id_at(self.port), settings.zone, self.epoch, self.address)
        return endpoint(identity, self.models.info, self.models.states())

    def _models_changed(self) -> None:
        """In the catalog at once."""
        if self._record is not None:
            self._record.rebase(self._base())
            self._registrar.announce(self.endpoint())

    @property
    def info(self) -> EngineInfo:
        """What its engines are together. Valid once it serves."""
        return self.models.info

    def load(self) -> EngineLoad:
        """Its engines' figures together."""
        return self.models.load()

    @property
    def attached_routers(self) -> int:
        """How many router processes have a link to it."""
        return self.links.attached if self.links is not None else 0

    def _goodbye(self, reason: str, grace_s: float) -> None:
        if self.links is not None:
            self.links.goodbye(reason, grace_s)

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
