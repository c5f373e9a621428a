"""Which of a simulated server's models are hot: by a real one's rules (model_server/residency), on virtual time.

A model that makes room takes nothing new and waits for what runs on it; then the wanted one wakes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from bench.routing.engine import Engine
from bench.routing.job import Flight
from bench.routing.timeline import Timeline
from bench.routing.workload import ServerSpec
from model_server.residency.demand import Demand
from model_server.residency.room import Limits, Price, Seat, make_room, price

# Hears whether the model is hot now, and else after how long to ask again (None: of no use).
Done = Callable[[bool, float | None], None]

# Of how long a request runs, in the mean, as model_server/residency/held.py.
_REQUEST_WEIGHT = 1 / 16


@dataclass(slots=True)
class _Move:
    """A model on its way in: who makes room for it, and who wants to hear. `waking`: it has its place."""

    victims: tuple[str, ...]
    waiting: list[Done] = field(default_factory=list)
    waking: bool = False


class Residents:
    """A server's models. `changed` is told when one has another residency."""

    def __init__(
        self, spec: ServerSpec, timeline: Timeline, engines: Mapping[str, Engine], changed: Callable[[], None]
    ) -> None:
        self.cold_starts = 0
        self._timeline = timeline
        self._engines = engines
        self._changed = changed
        self._placed: Callable[[], None] = lambda: None
        self._wake_s = spec.speeds.wake_ms / 1e3
        self._limits = Limits(max_hot=spec.hot)
        self._hot = dict.fromkeys(spec.models[: spec.hot], 0.0)  # since when
        self._demand = {model: Demand() for model in spec.models}
        self._used_s = dict.fromkeys(spec.models, 0.0)
        self._request_s = dict.fromkeys(spec.models, 0.0)
        self._began_s: dict[int, float] = {}
        # Those on their way in, and those on their way out.
        self._coming: dict[str, _Move] = {}
        self._leaving: set[str] = set()

    def listen(self, placed: Callable[[], None]) -> None:
        """`placed` is told when a model got hot."""
        self._placed = placed

    def is_hot(self, model: str) -> bool:
        """Whether it serves now."""
        return model in self._hot and model not in self._leaving

    def asked(self, model: str) -> None:
        """Somebody asked for it."""
        self._demand[model].add(self._timeline.now_s)

    def began(self, model: str, flight: Flight) -> None:
        """A request runs on it."""
        self._used_s[model] = self._began_s[flight.job.number] = self._timeline.now_s

    def ended(self, model: str, flight: Flight) -> None:
        """And has ended."""
        now_s = self._used_s[model] = self._timeline.now_s
        took_s, known_s = now_s - self._began_s.pop(flight.job.number, now_s), self._request_s[model]
        self._request_s[model] += (took_s - known_s) * (_REQUEST_WEIGHT if known_s else 1.0)
        if model in self._leaving:
            self._go_on()

    def ready(self, model: str, done: Done) -> None:
        """Make it hot; one that is on its way is so once."""
        if self.is_hot(model):
            done(True, None)
            return
        if model in self._coming:
            self._coming[model].waiting.append(done)
            return
        if model in self._leaving:
            done(False, 0.5)
            return
        room = make_room(self._seat(model), self._awake(), self._limits, self._timeline.now_s)
        if room.refused:
            done(False, room.retry_after_s)
            return
        self._coming[model] = _Move(room.victims, [done])
        self._leaving.update(room.victims)
        self._changed()
        self._go_on()

    def room(self) -> Price:
        """As Models.room of a real server."""
        return price(Seat("", ready_s=self._wake_s), self._awake(), self._limits, self._timeline.now_s)

    def _go_on(self) -> None:
        """Wake what has its place."""
        for model, move in self._coming.items():
            if move.waking or any(self._engines[victim].streams for victim in move.victims):
                continue
            for victim in move.victims:
                del self._hot[victim]
                self._leaving.discard(victim)
            move.waking = True
            self.cold_starts += 1
            self._timeline.after(self._wake_s, partial(self._woken, model))

    def _woken(self, model: str) -> None:
        move = self._coming.pop(model)
        self._hot[model] = self._timeline.now_s
        self._changed()
        for done in move.waiting:
            done(True, None)
        self._placed()

    def _awake(self) -> list[Seat]:
        return [self._seat(model) for model in (*self._hot, *self._coming)]

    def _seat(self, model: str) -> Seat:
        now_s = self._timeline.now_s
        return Seat(
            model,
            moving=model in self._leaving or model in self._coming,
            users=self._engines[model].streams,
            demand_per_s=self._demand[model].per_s(now_s),
            used_at_s=self._used_s[model],
            hot_since_s=self._hot.get(model, 0.0),
            ready_s=self._wake_s,
            request_s=self._request_s[model],
        )
