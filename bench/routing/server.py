"""A simulated server: an engine for each of its models, as many of them hot as fit, and reports to every router."""

import random
from collections.abc import Callable
from dataclasses import replace

from bench.routing.engine import Engine, Stream, Told
from bench.routing.job import Flight
from bench.routing.timeline import Timeline
from bench.routing.workload import ServerSpec
from discovery.endpoint import Endpoint, Load, ModelState, Residency

# Links carry a load with a step at most so often, as model_server/link.py.

REPORT_EVERY_S = 0.25


class Server:
    """One server's life. `report` is told its load; `changed` that a model's residency is another."""

    def __init__(
        self,
        spec: ServerSpec,
        timeline: Timeline,
        rng: random.Random,
        first: Callable[[Stream], None],
        ended: Callable[[Stream], None],
        report: Callable[["Server", Load], None],
        changed: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.alive = True
        self.cold_starts = 0
        self._timeline = timeline
        self._report = report
        self._changed = changed
        self._reported_s = -REPORT_EVERY_S
        self._report_due = False
        told = Told(first, lambda stream: self._ended(stream, ended), self._stepped)
        self._engines = {
            model: Engine(spec.speeds, timeline, random.Random(rng.random()), told, self._busy) for model in spec.models
        }
        # Least recently used first.
        self._hot = list(spec.models[: spec.hot])
        # Flights whose model has no place yet.
        self._unplaced: list[Flight] = []

    def engine(self, model: str) -> Engine:
        """The engine of a model."""
        return self._engines[model]

    @property
    def engines(self) -> list[Engine]:
        """All of them."""
        return list(self._engines.values())

    @property
    def streams(self) -> int:
        """All that it has."""
        return sum(engine.streams for engine in self._engines.values()) + len(self._unplaced)

    def is_hot(self, model: str) -> bool:
        """Whether it can serve the model now."""
        return model in self._hot

    def endpoint(self) -> Endpoint:
        """Its record, without its load."""
        speeds = self.spec.speeds
        models = tuple(
            ModelState(model, Residency.HOT, 131_072)
            if model in self._hot
            else ModelState(model, Residency.ASLEEP, 131_072, time_to_ready_ms=speeds.wake_ms)
            for model in self._engines
        )
        name = self.spec.name
        return Endpoint(
            server=name,
            address=f"{name}:1",
            zone=self.spec.zone,
            epoch="1",
            engine="sim",
            models=models,
            max_streams=speeds.max_streams,
            kv_tokens=speeds.kv_tokens,
            link_version=1,
        )

    def load(self) -> Load:
        """The load of all its engines."""
        loads = [engine.load() for engine in self._engines.values()]
        if len(loads) == 1:
            return loads[0]
        return replace(
            max(loads, key=lambda load: load.running + load.waiting),
            running=sum(load.running for load in loads),
            waiting=sum(load.waiting for load in loads) + len(self._unplaced),
            waiting_prompt_tokens=sum(load.waiting_prompt_tokens for load in loads),
        )

    def digest(self) -> dict[int, bool]:
        """Blocks that came (True) and went since the last one."""
        news: dict[int, bool] = {}
        for engine in self._engines.values():
            news |= engine.kv.news
            engine.kv.news = {}
        return news

    def start(self, flight: Flight) -> None:
        """A request came over a link."""
        model = flight.job.model
        if model in self._hot:
            self._hot.remove(model)
            self._hot.append(model)
            self._engines[model].start(flight)
        elif not self._ready(model, flight):
            self._unplaced.append(flight)

    def die(self) -> list[Flight]:
        """It is gone; returns the flights it had."""
        self.alive = False
        lost = [stream.flight for engine in self._engines.values() for stream in engine.die()]
        return lost + self._unplaced

    def _ready(self, model: str, flight: Flight) -> bool:
        """Put a model that is idle to sleep and wake the asked one; False if all that are hot are busy."""
        idle = next((hot for hot in self._hot if not self._engines[hot].streams), None)
        if idle is None:
            return False
        self._hot.remove(idle)
        self._hot.append(model)
        self.cold_starts += 1
        engine = self._engines[model]
        engine.ready_at(self._timeline.now_s + self.spec.speeds.wake_ms / 1e3)
        engine.start(flight)
        self._changed()
        return True

    def _ended(self, stream: Stream, ended: Callable[[Stream], None]) -> None:
        ended(stream)
        waiting, self._unplaced = self._unplaced, []
        for flight in waiting:
            self.start(flight)

    def _busy(self) -> int:
        """Engines that share the accelerator."""
        if len(self._engines) == 1:
            return 1
        return max(1, sum(engine.stepping for engine in self._engines.values()))

    def _stepped(self) -> None:
        if not self._report_due:
            self._report_due = True
            self._timeline.at(self._reported_s + REPORT_EVERY_S, self._say)

    def _say(self) -> None:
        self._report_due = False
        self._reported_s = self._timeline.now_s
        if self.alive:
            self._report(self, self.load())
