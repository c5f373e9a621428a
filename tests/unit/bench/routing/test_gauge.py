"""What a simulated engine's meter hears of its steps."""

import pytest

from bench.routing.gauge import Gauge
from bench.routing.timeline import Timeline
from model_server.meter import Meter

pytestmark = pytest.mark.unit


class Heard(Meter):
    """Keeps what it is told of steps without prompts: contexts' tokens, and seconds."""

    def __init__(self) -> None:
        super().__init__(Timeline(), lambda: False)
        self.heard: list[tuple[float, float]] = []

    def decoded(self, context_tokens: float, step_s: float) -> None:
        self.heard.append((context_tokens, step_s))


def gauge() -> tuple[Gauge, Meter]:
    meter = Meter(Timeline(), lambda: False)
    return Gauge(meter), meter


def test_a_token_takes_what_its_step_took() -> None:
    told, meter = gauge()
    told.step(20.0, 3, 300, prompts=False)
    told.step(40.0, 1, 100, prompts=True)
    assert meter.itl_ms == 0.0, "nothing is told before a report is due"
    told.settle(1.0)
    assert meter.itl_ms == pytest.approx((3 * 20.0 + 40.0) / 4)


def test_steps_with_prompts_say_nothing_of_what_contexts_cost_and_end_what_steps_alone_say() -> None:
    meter = Heard()
    told, heard = Gauge(meter), meter.heard
    for context in (100, 200, 300):
        told.step(10.0, 1, context, prompts=False)
    told.step(50.0, 1, 900, prompts=True)
    assert heard == [], "three steps are too few"
    for context in (100, 200, 300, 400):
        told.step(10.0, 1, context, prompts=False)
    told.step(50.0, 1, 900, prompts=True)
    assert heard == [(250.0, 0.01)]
