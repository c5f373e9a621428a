"""A server's record for the catalog: slow facts from the engine; load from engine, meter and device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from discovery.endpoint import Endpoint, Load, ModelState
from model_server.engine import EngineInfo, EngineLoad
from model_server.meter import Meters
from model_server.residency.room import Price
from stoker_common.link.versions import SPOKEN


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a server is. `epoch` is one id per life."""

    server: str
    zone: str
    epoch: str
    address: str


@dataclass(frozen=True, slots=True)
class Usage:
    """How busy what the server computes on is: shares in [0, 1] of the accelerator, or of the host without one."""

    utilization: float = 0.0
    memory_usage: float = 0.0


class Device(Protocol):
    """What the server computes on."""

    def read(self) -> Usage:
        """The latest figures. Cheap. Raises DeviceLost."""


class Engines(Protocol):
    """What a server computes with: one engine, or all of them together."""

    @property
    def info(self) -> EngineInfo:
        """What they are."""

    def load(self) -> EngineLoad:
        """Their figures."""


class SimulatedDevice:
    """What simulated engines would keep busy: as much of their time as of a batch is taken, and their KV cache."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def read(self) -> Usage:
        """The engines' own figures, as if they were a device's."""
        load = self._engines.load()
        return Usage(min(load.running / self._engines.info.max_streams, 1.0), load.kv_usage)


def endpoint(identity: Identity, info: EngineInfo, models: tuple[ModelState, ...]) -> Endpoint:
    """The record of a server with these models, without load."""
    return Endpoint(
        server=identity.server,
        address=identity.address,
        zone=identity.zone,
        epoch=identity.epoch,
        engine=info.engine,
        models=models,
        engine_version=info.version,
        accelerator=info.accelerator,
        accelerator_count=info.accelerator_count,
        accelerator_memory_bytes=info.accelerator_memory_bytes,
        max_streams=info.max_streams,
        kv_tokens=info.kv_tokens,
        step_tokens=info.step_tokens,
        link_version=SPOKEN.highest,
        numerics_class=info.numerics_class,
        resume_modes=tuple(mode.value for mode in info.resume_modes),
        exact_modes=tuple(mode.value for mode in info.exact_modes),
    )


# Told instead of never.
_NEVER_MS = 3_600_000.0


class Record:
    """The server's record: `base` as `rebase` left it last, always with its latest load."""

    def __init__(
        self,
        base: Endpoint,
        engines: Engines,
        meters: Meters,
        usage: Callable[[], Usage],
        room: Callable[[], Price] = Price,
        cached: Callable[[], int] = int,
    ) -> None:
        """`room`: what room for one more model would cost; `cached`: waiting tokens expected in caches."""
        self._cached = cached
        self._room = room
        self._base = base
        self._engines = engines
        self._meters = meters
        self._usage = usage

    def rebase(self, base: Endpoint) -> None:
        """Models came or went."""
        self._base = base

    def load(self) -> Load:
        """The load at this moment."""
        load, meters, usage = self._engines.load(), self._meters, self._usage()
        # Engines keep the figures of their last step when they fall idle: no more can run than was asked for.
        running = min(load.running, meters.sequences)
        room = self._room()
        return Load(
            running=running,
            waiting=min(load.waiting, meters.sequences - running),
            kv_usage=load.kv_usage,
            utilization=usage.utilization,
            memory_usage=usage.memory_usage,
            waiting_prompt_tokens=meters.waiting_prompt_tokens,
            prefill_tokens_per_second=meters.prefill_tokens_per_second,
            itl_ms=meters.itl_ms,
            attention_tokens=meters.attention_tokens,
            context_tokens=meters.context_tokens,
            step_ms_per_context_token=meters.step_ms_per_context_token,
            waiting_cached_prompt_tokens=self._cached(),
            room_ms=_NEVER_MS if room.s is None else min(_NEVER_MS, room.s * 1e3),
            yielding=room.victims,
        )

    def endpoint(self) -> Endpoint:
        """The record with the load at this moment."""
        return replace(self._base, load=self.load())
