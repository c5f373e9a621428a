"""A server's models without a server."""

import time

from prometheus_client import CollectorRegistry

from discovery.endpoint import Residency
from model_server.engine import Engine
from model_server.inflight import InFlight
from model_server.liveness import LivenessRules
from model_server.record import SimulatedDevice
from model_server.residency.held import Held, Surroundings
from model_server.residency.metrics import ResidencyMetrics
from model_server.residency.models import Models
from model_server.residency.room import Limits
from model_server.residency.spec import ModelSpec
from stoker_common.clock import Clock


def surroundings(engine: Engine, in_flight: InFlight | None = None, clock: Clock = time.monotonic) -> Surroundings:
    """What a model needs of its server."""
    own = InFlight() if in_flight is None else in_flight
    return Surroundings(own, 4, LivenessRules(), SimulatedDevice(engine), 0.05, clock)


def hot(name: str, engine: Engine, in_flight: InFlight | None = None) -> Held:
    """A model whose engine is started already and not watched."""
    held = Held(ModelSpec(name, lambda: engine), surroundings(engine, in_flight))
    held.engine, held.info, held.residency = engine, engine.info, Residency.HOT
    held.running.open()
    return held


def only(*held: Held) -> Models:
    """These models and no others."""
    metrics = ResidencyMetrics(CollectorRegistry())
    return Models(held, Limits(), metrics, max_asleep=4, clock=time.monotonic, on_change=lambda: None)


def measured(models: Models, name: str, was: Residency, took_s: float) -> None:
    """As if it had taken so long to make the model hot from there."""
    models._seats.observe(models.find(name), was, took_s)
    models._mover._on_change()
