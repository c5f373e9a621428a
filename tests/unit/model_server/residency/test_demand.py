"""How often a model is asked for, and when that will have fallen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server.residency.demand import HALF_LIFE_S, Demand, fades_in_s

pytestmark = pytest.mark.unit


def test_steady_demand_is_its_rate_however_long_it_was_watched() -> None:
    demand = Demand(0.0)
    for second in range(1, 601):
        demand.add(float(second))
        if second in (60, 600):
            assert demand.per_s(float(second)) == pytest.approx(1.0, rel=0.02)


def test_what_was_watched_for_long_halves_in_a_half_life() -> None:
    assert fades_in_s(0.4, 0.1, watched_s=1e9) == pytest.approx(2 * HALF_LIFE_S)
    assert fades_in_s(0.0, 0.1, watched_s=60.0) == fades_in_s(0.1, 0.2, watched_s=60.0) == 0.0


@given(
    requests=st.integers(1, 50),
    watched_s=st.floats(10.0, 5000.0),
    share=st.floats(0.001, 1.0),
)
def test_demand_that_nobody_adds_to_has_fallen_when_it_was_said_to(
    requests: int, watched_s: float, share: float
) -> None:
    demand = Demand(0.0)
    for _ in range(requests):
        demand.add(watched_s)
    to_per_s = demand.per_s(watched_s) * share
    in_s = fades_in_s(demand.per_s(watched_s), to_per_s, demand.watched_s(watched_s))
    assert demand.per_s(watched_s + in_s) == pytest.approx(to_per_s)
