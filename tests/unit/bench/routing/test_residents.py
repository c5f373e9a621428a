import random

import pytest

from bench.routing.engine import Engine, Told
from bench.routing.job import Flight, Job
from bench.routing.residents import Residents
from bench.routing.speeds import Speeds
from bench.routing.timeline import Timeline
from bench.routing.workload import ServerSpec

SPEC = ServerSpec("s", "a", Speeds(noise=0.0, hiccup_share=0.0), ("one", "two", "three"), hot=2)


class Fixture:
    """A server's models, of which `one` and `two` are hot."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        told = Told(lambda stream: None, lambda stream: self.residents.ended("one", stream.flight), lambda: None)
        self.engines = {model: Engine(SPEC.speeds, self.timeline, random.Random(1), told) for model in SPEC.models}
        self.residents = Residents(SPEC, self.timeline, self.engines, lambda: None)
        self.told: list[tuple[float, bool]] = []
        # Both have been hot for long.
        self.timeline.at(60.0, lambda: None)
        self.timeline.run()

    def ready(self, model: str) -> None:
        self.residents.ready(model, lambda ready, retry_s: self.told.append((self.timeline.now_s, ready)))

    def hot(self) -> set[str]:
        return {model for model in SPEC.models if self.residents.is_hot(model)}


@pytest.fixture
def it() -> Fixture:
    return Fixture()


def test_a_model_wakes_in_place_of_an_idle_one_once_however_many_ask(it: Fixture) -> None:
    it.ready("three")
    it.ready("three")
    assert it.hot() == {"two"}
    it.timeline.run()
    assert it.hot() == {"two", "three"}
    assert it.told == [(60.55, True)] * 2
    assert it.residents.cold_starts == 1


def test_what_runs_on_the_yielding_one_ends_first(it: Fixture) -> None:
    flight = Flight(Job(1, 60.0, 100, 200, ()))
    it.residents.began("one", flight)
    it.residents.began("two", Flight(Job(2, 60.0, 100, 200, ())))
    it.engines["one"].start(flight)
    it.engines["two"].start(Flight(Job(2, 60.0, 100, 200, ())))
    price = it.residents.room()
    it.ready("three")
    it.ready("one")  # on its way out: not now
    it.timeline.run()
    assert price.victims == ("one",)
    (refused_s, refused), (ready_s, ready) = it.told
    assert (refused_s, refused, ready) == (60.0, False, True)
    # 200 tokens of some 7 ms, then 550 ms.
    assert 61.5 < ready_s < 64.0
