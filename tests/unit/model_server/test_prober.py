"""The prober against a simulated engine with faults, and a device that the test takes away."""

import asyncio
import time

import pytest

from model_server.engine import DeviceLost
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from model_server.liveness import LifeState, Liveness, LivenessRules
from model_server.meter import Meter
from model_server.prober import Prober
from model_server.record import Usage
from tests.fakes.until import until

pytestmark = pytest.mark.unit

RULES = LivenessRules(
    probe_interval_s=0.05, probe_timeout_s=0.15, stuck_after_s=0.15, first_probe_timeout_s=5.0, longest_gap_s=0.1
)


class Removable:
    """A Device that can be pulled out."""

    def __init__(self) -> None:
        self.gone = False

    def read(self) -> Usage:
        if self.gone:
            raise DeviceLost("pulled out")
        return Usage(0.5, 0.25)


class Probed:
    """A prober and what it watches."""

    def __init__(self) -> None:
        self.engine = SimEngine("m", SimSettings(load_ms=0.0, step_base_ms=1.0))
        self.device = Removable()
        self.meter = Meter()
        self.liveness = Liveness(RULES, time.monotonic())
        self.prober = Prober(self.engine, self.liveness, self.meter, self.device, tick_s=0.02, clock=time.monotonic)

    async def start(self) -> None:
        await self.engine.start()
        await self.prober.run_until_started()


async def test_the_first_probes_end_starting_and_measure_the_engine() -> None:
    probed = Probed()
    await probed.start()
    assert probed.liveness.state is LifeState.SERVING
    assert probed.meter.prefill_tokens_per_second > 1000.0
    assert 0.5 < probed.meter.itl_ms < 50.0
    assert probed.prober.usage == Usage(0.5, 0.25)
    assert not probed.meter.sequences and probed.engine.load().running == 0


async def test_an_engine_that_dies_during_the_first_probe_is_dead() -> None:
    probed = Probed()
    await probed.engine.start()
    probed.engine.faults.inject(dead=True)
    await probed.prober.run_until_started()
    assert probed.liveness.state is LifeState.DEAD


async def test_a_probe_that_fails_means_dead() -> None:
    probed = Probed()
    await probed.engine.start()
    probed.engine.faults.inject(error_rate=1.0)
    await probed.prober.run_until_started()
    assert probed.liveness.state is LifeState.DEAD and "probe" in probed.liveness.reason


async def test_while_idle_it_probes_and_leaves_nothing_on_the_engine_when_it_gives_up() -> None:
    probed = Probed()
    await probed.start()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(probed.prober.run_until_failed())
        steps = probed.engine.load().steps
        await until(lambda: probed.engine.load().steps > steps + 2)
        assert not probed.liveness.state.failed
        probed.engine.faults.inject(stall=True)
        await watching
    assert probed.liveness.state is LifeState.STUCK
    load = probed.engine.load()
    assert load.running == load.waiting == 0


async def test_a_device_that_goes_is_noticed() -> None:
    probed = Probed()
    await probed.start()
    probed.device.gone = True
    async with asyncio.timeout(3.0):
        await probed.prober.run_until_failed()
    assert probed.liveness.state is LifeState.DEVICE_LOST and "pulled out" in probed.liveness.reason


async def test_cancelling_it_takes_its_probe_off_the_engine() -> None:
    probed = Probed()
    await probed.start()
    probed.engine.faults.inject(stall=True)
    watching = asyncio.ensure_future(probed.prober.run_until_failed())
    await until(lambda: probed.engine.load().waiting + probed.engine.load().running == 1, within_s=1.0)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert probed.engine.load().running == probed.engine.load().waiting == 0
