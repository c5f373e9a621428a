"""A server's models on simulated engines, moving, without a server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from discovery.endpoint import Residency
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from model_server.inflight import InFlight
from model_server.liveness import Liveness, LivenessRules
from model_server.record import Usage
from model_server.residency.adapter import hold
from model_server.residency.held import Held, Surroundings
from model_server.residency.metrics import ResidencyMetrics
from model_server.residency.models import Models
from model_server.residency.move import Progress
from model_server.residency.room import Limits
from model_server.residency.spec import AdapterSpec, ModelSpec
from tests.fakes.clock import FakeClock

Specs = Callable[[Callable[[str], SimEngine]], Sequence[ModelSpec | AdapterSpec]]


class _Idle:
    """A Device with nothing to do."""

    def read(self) -> Usage:
        return Usage()


@dataclass
class Shelf:
    """Models, and all the engines that were ever made for them. `running`: ends when one of those fails."""

    models: Models
    clock: FakeClock
    registry: CollectorRegistry
    engines: dict[str, list[SimEngine]]
    changes: list[int]
    running: asyncio.Task[Liveness]

    def where(self) -> dict[str, Residency]:
        return {state.name: state.residency for state in self.models.states()}

    def held(self, name: str) -> Held:
        return self.models.find(name)

    async def ask(self, name: str, remaining_s: float | None = None) -> list[Progress]:
        """Use a model for a moment; an adapter is in its base's engine then."""
        told: list[Progress] = []

        async def tell(progress: Progress) -> None:
            told.append(progress)

        async with self.models.use(self.held(name), remaining_s, tell) as held:
            assert held.hot and held.engine is not None and (held.base is None or held.engine is held.base.engine)
            await held.engine.check()
        return told

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def shelf(
    specs: Specs, sim: SimSettings, limits: Limits | None = None, *, max_asleep: int = 4
) -> AsyncIterator[Shelf]:
    """Models that run; `specs` makes them of what makes their engines."""
    engines: dict[str, list[SimEngine]] = {}
    clock = FakeClock()

    def make(name: str) -> SimEngine:
        engines[name].append(SimEngine(name, sim))
        return engines[name][-1]

    rules = LivenessRules(first_probe_timeout_s=1e9, probe_interval_s=1e9)
    held = hold(specs(make), Surroundings(InFlight(), 256, rules, _Idle(), 0.01, clock))
    engines |= {each.name: [] for each in held if each.base is None}
    registry, changes = CollectorRegistry(), [0]
    models = Models(
        held,
        limits or Limits(),
        ResidencyMetrics(registry),
        max_asleep=max_asleep,
        clock=clock,
        on_change=lambda: changes.append(len(changes)),
    )
    assert await models.start() is None
    running = asyncio.ensure_future(models.run())
    await asyncio.sleep(0)
    try:
        yield Shelf(models, clock, registry, engines, changes, running)
    finally:
        running.cancel()
        await asyncio.wait((running,))
        await models.stop()
