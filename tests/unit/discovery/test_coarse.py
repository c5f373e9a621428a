"""Coarse steps: few, monotonic, near the truth."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.coarse import coarse_count, coarse_load, coarse_rate, coarse_share
from discovery.endpoint import Load

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("share", "step"),
    [
        (0.0, 0.0),
        (0.04, 0.0),
        (0.05, 0.1),
        (0.44, 0.4),
        (0.95, 1.0),
        (1.0, 1.0),
        (7.0, 1.0),
        (-1.0, 0.0),
        (math.nan, 0.0),
    ],
)
def test_shares_go_in_tenths(share: float, step: float) -> None:
    assert coarse_share(share) == step


def test_counts_go_in_steps_of_about_half() -> None:
    steps = sorted({coarse_count(count) for count in range(101)})
    assert steps == [0, 1, 2, 3, 5, 7, 10, 15, 22, 33, 47, 68, 100]


@given(st.floats(1e-3, 1e15))
def test_rates_are_within_an_eighth(rate: float) -> None:
    # The widest step of E12 is 1.2 to 1.5: half of it, as a ratio, is 1.118.
    assert 1 / 1.12 < coarse_rate(rate) / rate < 1.12


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, -math.inf, 1e-9])
def test_what_is_no_rate_is_not_known(rate: float) -> None:
    assert coarse_rate(rate) == 0.0


@given(st.floats(0, 1e15), st.floats(0, 1e15))
def test_steps_keep_the_order(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert coarse_rate(low) <= coarse_rate(high)
    assert coarse_count(int(low)) <= coarse_count(int(high))


def test_a_hostile_load_becomes_one_that_can_be_written() -> None:
    load = coarse_load(Load(-5, 10**30, math.inf, -math.inf, math.nan, -1, math.inf, math.nan))
    assert load == Load(0, 10**15, 1.0, 0.0, 0.0, 0, 1e15, 0.0)
