"""The liveness rules, on a clock that the test holds."""

import pytest

from model_server.liveness import LifeState, Liveness, LivenessRules
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.unit

RULES = LivenessRules(
    probe_interval_s=5.0, probe_timeout_s=3.0, stuck_after_s=10.0, first_probe_timeout_s=60.0, longest_gap_s=1.0
)


class Watched:
    """A liveness machine that is read every quarter of a second."""

    def __init__(self, *, started: bool = True) -> None:
        self.clock = FakeClock()
        self.liveness = Liveness(RULES, self.clock())
        self.steps = 0
        if started:
            self.liveness.probe_began()
            self.liveness.probe_came_back()
            self.read(busy=False)

    def read(self, *, busy: bool) -> None:
        self.liveness.read(self.clock(), steps=self.steps, busy=busy)

    def pass_time(self, seconds: float, *, busy: bool, steps_a_tick: int = 0) -> None:
        for _ in range(round(seconds / 0.25)):
            self.clock.advance(0.25)
            self.steps += steps_a_tick
            self.read(busy=busy)

    def state(self) -> LifeState:
        return self.liveness.state


def test_it_starts_with_a_probe_and_serves_when_that_came_back() -> None:
    watched = Watched(started=False)
    assert watched.state() is LifeState.STARTING and watched.liveness.probe_due()
    watched.liveness.probe_began()
    assert not watched.liveness.probe_due()
    watched.pass_time(50.0, busy=False)
    assert watched.state() is LifeState.STARTING
    watched.liveness.probe_came_back()
    assert watched.state() is LifeState.SERVING


def test_a_first_probe_has_its_own_limit() -> None:
    watched = Watched(started=False)
    watched.liveness.probe_began()
    watched.pass_time(61.0, busy=False)
    assert watched.state() is LifeState.STUCK and "60 s" in watched.liveness.reason


def test_an_idle_engine_is_probed_again_and_again() -> None:
    watched = Watched()
    for _ in range(3):
        watched.pass_time(4.5, busy=False)
        assert not watched.liveness.probe_due()
        watched.pass_time(0.5, busy=False)
        assert watched.liveness.probe_due()
        watched.liveness.probe_began()
        watched.pass_time(1.0, busy=False)
        watched.liveness.probe_came_back()
    assert watched.state() is LifeState.SERVING


def test_a_probe_that_does_not_come_back_means_stuck() -> None:
    watched = Watched()
    watched.liveness.probe_began()
    watched.pass_time(3.0, busy=False)
    assert watched.state() is LifeState.SERVING
    watched.pass_time(0.25, busy=False)
    assert watched.state() is LifeState.STUCK


def test_a_probe_behind_real_work_is_not_judged_while_there_is_work_nor_at_once_after_it() -> None:
    watched = Watched()
    watched.liveness.probe_began()
    watched.pass_time(60.0, busy=True, steps_a_tick=1)
    watched.pass_time(2.0, busy=False)
    assert watched.state() is LifeState.SERVING
    watched.pass_time(1.25, busy=False)
    assert watched.state() is LifeState.STUCK


def test_a_busy_engine_is_not_probed_and_lives_by_its_steps() -> None:
    watched = Watched()
    watched.pass_time(100.0, busy=True, steps_a_tick=1)
    assert watched.state() is LifeState.SERVING and not watched.liveness.probe_due()


def test_a_busy_engine_without_steps_is_stuck_after_the_limit_and_not_before() -> None:
    watched = Watched()
    watched.read(busy=True)
    watched.pass_time(10.0, busy=True)
    assert watched.state() is LifeState.SERVING
    watched.pass_time(0.25, busy=True)
    assert watched.state() is LifeState.STUCK and "no step" in watched.liveness.reason


def test_work_that_comes_after_long_idleness_gets_its_whole_time() -> None:
    watched = Watched()
    watched.pass_time(1000.0, busy=False)
    # It came somewhere between the last idle reading and the first busy one.
    watched.pass_time(0.25 + RULES.stuck_after_s, busy=True)
    assert watched.state() is LifeState.SERVING
    watched.pass_time(0.25, busy=True)
    assert watched.state() is LifeState.STUCK


def test_slow_steps_are_life() -> None:
    watched = Watched()
    for _ in range(20):
        watched.pass_time(9.5, busy=True)
        watched.steps += 1
        watched.read(busy=True)
    assert watched.state() is LifeState.SERVING


def test_its_own_absence_is_not_taken_for_the_engines() -> None:
    watched = Watched()
    watched.read(busy=True)
    for _ in range(5):
        watched.clock.advance(3600.0)
        watched.read(busy=True)
    assert watched.state() is LifeState.SERVING


@pytest.mark.parametrize(
    ("happen", "state"),
    [
        (lambda life: life.died("gone"), LifeState.DEAD),
        (lambda life: life.device_lost("gone"), LifeState.DEVICE_LOST),
        (lambda life: life.probe_failed("gone"), LifeState.DEAD),
    ],
)
def test_a_failure_is_final_and_the_first_one_is_the_cause(happen: object, state: LifeState) -> None:
    watched = Watched()
    assert callable(happen)
    happen(watched.liveness)
    reason = watched.liveness.reason
    assert "gone" in reason
    watched.liveness.died("something else")
    watched.liveness.drain("asked to")
    watched.liveness.probe_began()
    watched.liveness.probe_came_back()
    assert (watched.state(), watched.liveness.reason) == (state, reason)
    assert state.failed and not watched.liveness.probe_due()


def test_a_draining_server_is_watched_on() -> None:
    watched = Watched()
    watched.liveness.drain("asked to")
    watched.pass_time(5.0, busy=True, steps_a_tick=1)
    assert watched.state() is LifeState.DRAINING
    watched.pass_time(10.5, busy=True)
    assert watched.state() is LifeState.STUCK
