from collections.abc import Callable

import pytest

from discovery.endpoint import Load
from stoker_common.link.progress import Progress

RUNNING = Load(running=3, prefill_tokens_per_second=1000)


class Engine:
    """A link whose server sends a sign of life every 0.5 s, watched every 0.25 s."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.step = 0
        self.progress = Progress(2.0, 0.5, 0.0)
        self.progress.begin()
        self.progress.sign(self.step, RUNNING)

    def stalled_after(
        self,
        seconds: float,
        load: Load = RUNNING,
        streams: int = 1,
        moves: Callable[[float], bool] = lambda now_s: False,
    ) -> float | None:
        """When the engine is called stalled; None if it is not within so long."""
        began_s = self.now_s
        while self.now_s < began_s + seconds:
            self.now_s += 0.25
            if moves(self.now_s):
                self.step += 1
            if self.now_s % 0.5 == 0:
                self.progress.sign(self.step, load)
            if self.progress.tick(self.now_s, streams):
                return self.now_s - began_s
        return None


def test_a_counter_that_stands_still_while_streams_run_is_a_stall() -> None:
    stalled_s = Engine().stalled_after(10)
    assert stalled_s is not None
    assert 2 < stalled_s <= 2.5


@pytest.mark.parametrize(
    ("load", "streams"),
    [(Load(running=0, waiting=5), 5), (Load(), 1), (RUNNING, 0)],
    ids=["all wait", "not begun", "none of ours"],
)
def test_waiting_is_no_stall(load: Load, streams: int) -> None:
    engine = Engine()
    engine.progress.sign(0, load)
    assert engine.stalled_after(30, load, streams) is None


def test_steps_are_no_stall() -> None:
    assert Engine().stalled_after(30, moves=lambda now_s: now_s % 1.5 == 0) is None


def test_a_prompt_is_given_its_time() -> None:
    engine = Engine()
    stalled_s = engine.stalled_after(20, Load(running=1, waiting_prompt_tokens=2500, prefill_tokens_per_second=1000))
    assert stalled_s == pytest.approx(4.5, abs=0.5)
    engine = Engine()
    stalled_s = engine.stalled_after(20, Load(running=1, waiting_prompt_tokens=10**6, prefill_tokens_per_second=1000))
    assert stalled_s == pytest.approx(5.0, abs=0.5)


def test_an_engine_of_long_steps_is_believed_once_it_was_seen() -> None:
    engine = Engine()
    assert engine.stalled_after(30, moves=lambda now_s: now_s % 2.0 == 0) is None
    assert engine.stalled_after(3.5) is None
    assert engine.stalled_after(3) is not None


def test_a_router_that_slept_takes_nothing_for_a_stall() -> None:
    engine = Engine()
    engine.now_s += 60
    assert not engine.progress.tick(engine.now_s, 1)


def test_it_takes_signs_of_life_to_know() -> None:
    progress = Progress(2.0, 0.5, 0.0)
    progress.sign(0, RUNNING)
    assert not any(progress.tick(tick * 0.25, 1) for tick in range(40))


def test_the_counter_moving_again_is_told() -> None:
    engine = Engine()
    assert engine.stalled_after(10) is not None
    assert not engine.progress.sign(engine.step, None)
    assert engine.progress.sign(engine.step + 1, None)
