"""A simulated server: an engine for each of its models, as many of them hot as fit, and reports to every router."""

import random
from collections.abc import Callable
from dataclasses import replace

from bench.routing.engine import Engine, Stream, Told
from bench.routing.job import Flight
from bench.routing.residents import Residents
from bench.routing.timeline import Timeline
from bench.routing.workload import ServerSpec
from discovery.endpoint import Endpoint, Load, ModelState, Residency
from model_server.bids import Bids, Coming
from stoker.v1.worker_link_pb2 import Bid

# Links carry a load with a step at most so often, as model_server/link.py.

REPORT_EVERY_S = 0.25
HEARTBEAT_S = 0.5


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
        self._timeline = timeline
        self._report = report
        self._reported_s = -REPORT_EVERY_S
        self._report_due = False
        self._bids = Bids(lambda: sum(engine.meter.waiting_prompt_tokens for engine in self.engines.values()))
        # Prompts that were taken and have no first token yet.
        self._coming: dict[int, Coming] = {}
        told = Told(lambda stream: self._first(stream, first), lambda stream: self._ended(stream, ended), self._stepped)
        self.engines = {
            model: Engine(spec.speeds, timeline, random.Random(rng.random()), told, self._busy) for model in spec.models
        }
        self.residents = Residents(spec, timeline, self.engines, changed)
        self.residents.listen(self._placed)
        # Flights whose model was put to sleep while they were on their way.
        self._unplaced: list[Flight] = []

    def engine(self, model: str) -> Engine:
        """The engine of a model."""
        return self.engines[model]

    @property
    def streams(self) -> int:
        """All that it has."""
        return sum(engine.streams for engine in self.engines.values()) + len(self._unplaced)

    def is_hot(self, model: str) -> bool:
        """Whether it can serve the model now."""
        return self.residents.is_hot(model)

    def endpoint(self) -> Endpoint:
        """Its record, without its load."""
        speeds = self.spec.speeds
        models = tuple(
            ModelState(model, Residency.HOT, 131_072)
            if self.is_hot(model)
            else ModelState(model, Residency.ASLEEP, 131_072, time_to_ready_ms=speeds.wake_ms)
            for model in self.engines
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
            step_tokens=speeds.max_batched_tokens,
            link_version=1,
        )

    def load(self) -> Load:
        """The load of all its engines."""
        cached = self._bids.cached
        loads = [engine.load() for engine in self.engines.values()]
        if len(loads) == 1:
            return replace(loads[0], waiting_cached_prompt_tokens=cached)
        room = self.residents.room()
        return replace(
            max(loads, key=lambda load: load.running + load.waiting),
            running=sum(load.running for load in loads),
            waiting=sum(load.waiting for load in loads) + len(self._unplaced),
            waiting_prompt_tokens=sum(load.waiting_prompt_tokens for load in loads),
            # The engines share the accelerator: as Meters has it, the rates are the slowest's.
            prefill_tokens_per_second=min(
                (load.prefill_tokens_per_second for load in loads if load.prefill_tokens_per_second), default=0.0
            ),
            itl_ms=max(load.itl_ms for load in loads),
            attention_tokens=min((load.attention_tokens for load in loads if load.attention_tokens), default=0.0),
            context_tokens=sum(load.context_tokens for load in loads),
            step_ms_per_context_token=max(load.step_ms_per_context_token for load in loads),
            waiting_cached_prompt_tokens=cached,
            room_ms=3.6e6 if room.s is None else room.s * 1e3,
            yielding=room.victims,
        )

    def digest(self) -> dict[int, bool]:
        """Blocks that came (True) and went since the last one."""
        news: dict[int, bool] = {}
        for engine in self.engines.values():
            news |= engine.kv.news
            engine.kv.news = {}
        return news

    def start(self, flight: Flight, bid: Bid | None = None) -> None:
        """A request came over a link. Raises Refusal if it was outbid."""
        self._coming[flight.job.number] = self._bids.admit(bid)
        self._place(flight)

    def _place(self, flight: Flight) -> None:
        model = flight.job.model
        self.residents.asked(model)
        if self.residents.is_hot(model):
            self.residents.began(model, flight)
            self.engines[model].start(flight)
        else:
            self._unplaced.append(flight)
            self.residents.ready(model, lambda ready, retry_s: None)

    def die(self) -> list[Flight]:
        """It is gone; returns the flights it had."""
        self.alive = False
        lost = [stream.flight for engine in self.engines.values() for stream in engine.die()]
        return lost + self._unplaced

    def _first(self, stream: Stream, first: Callable[[Stream], None]) -> None:
        self._coming.pop(stream.flight.job.number).computed()
        first(stream)

    def _ended(self, stream: Stream, ended: Callable[[Stream], None]) -> None:
        self.residents.ended(stream.flight.job.model, stream.flight)
        ended(stream)
        self._placed()

    def _placed(self) -> None:
        waiting, self._unplaced = self._unplaced, []
        for flight in waiting:
            self._place(flight)

    def _busy(self) -> int:
        """Engines that share the accelerator."""
        if len(self.engines) == 1:
            return 1
        return max(1, sum(engine.stepping for engine in self.engines.values()))

    def beat(self) -> None:
        """A heartbeat, where nothing was said for as long as it takes."""
        if self._timeline.now_s >= self._reported_s + HEARTBEAT_S:
            self._stepped()

    def _stepped(self) -> None:
        if not self._report_due:
            self._report_due = True
            self._timeline.at(self._reported_s + REPORT_EVERY_S, self._say)

    def _say(self) -> None:
        self._report_due = False
        self._reported_s = self._timeline.now_s
        if self.alive:
            self._report(self, self.load())
