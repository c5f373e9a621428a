"""A server's record for the catalog: slow facts from the engine; load from engine, meter and device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from discovery.endpoint import Endpoint, Load, ModelState, Residency
from model_server.engine import Engine, EngineInfo
from model_server.meter import Meter


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a server is. `epoch` is one id per life."""

    server: str
    zone: str
    epoch: str
    model: str


@dataclass(frozen=True, slots=True)
class Usage:
    """How busy what the server computes on is: shares in [0, 1] of the accelerator, or of the host without one."""

    utilization: float = 0.0
    memory_usage: float = 0.0


# The worker link's version that this server speaks (link.py).
LINK_VERSION = 1


class Device(Protocol):
    """What the server computes on."""

    def read(self) -> Usage:
        """The latest figures. Cheap. Raises DeviceLost."""


class SimulatedDevice:
    """What a simulated engine would keep busy: as much of its time as of its batch is taken, and its KV cache."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Usage:
        """The engine's own figures, as if they were a device's."""
        load = self._engine.load()
        return Usage(min(load.running / self._engine.info.max_streams, 1.0), load.kv_usage)


def endpoint(identity: Identity, info: EngineInfo, address: str) -> Endpoint:
    """The record of a server whose model is loaded, without load."""
    return Endpoint(
        server=identity.server,
        address=address,
        zone=identity.zone,
        epoch=identity.epoch,
        engine=info.engine,
        models=(ModelState(identity.model, Residency.HOT, info.max_model_tokens),),
        engine_version=info.version,
        accelerator=info.accelerator,
        accelerator_count=info.accelerator_count,
        accelerator_memory_bytes=info.accelerator_memory_bytes,
        max_streams=info.max_streams,
        kv_tokens=info.kv_tokens,
        link_version=LINK_VERSION,
        numerics_class=info.numerics_class,
        resume_modes=tuple(mode.value for mode in info.resume_modes),
        exact_modes=tuple(mode.value for mode in info.exact_modes),
    )


class Record:
    """The server's record, always with its latest load."""

    def __init__(self, base: Endpoint, engine: Engine, meter: Meter, usage: Callable[[], Usage]) -> None:
        self._base = base
        self._engine = engine
        self._meter = meter
        self._usage = usage

    def load(self) -> Load:
        """The load at this moment."""
        engine, meter, usage = self._engine.load(), self._meter, self._usage()
        # Engines keep the figures of their last step when they fall idle: no more can run than was asked for.
        running = min(engine.running, len(meter.sequences))
        return Load(
            running=running,
            waiting=min(engine.waiting, len(meter.sequences) - running),
            kv_usage=engine.kv_usage,
            utilization=usage.utilization,
            memory_usage=usage.memory_usage,
            waiting_prompt_tokens=meter.waiting_prompt_tokens,
            prefill_tokens_per_second=meter.prefill_tokens_per_second,
            itl_ms=meter.itl_ms,
        )

    def endpoint(self) -> Endpoint:
        """The record with the load at this moment."""
        return replace(self._base, load=self.load())
