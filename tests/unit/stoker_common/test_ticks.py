"""Who looks every so often does it at moments that are the same for all."""

import pytest

from stoker_common.ticks import until

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("now_s", [0.0, 0.01, 7.1, 7.124, 7.24, 7.2499, 99999.3, 1e9 + 0.1])
@pytest.mark.parametrize("every_s", [0.25, 0.5, 1.0])
def test_all_wake_at_the_same_moments_whenever_they_began(now_s: float, every_s: float) -> None:
    at_s = now_s + until(now_s, every_s)
    assert at_s / every_s == pytest.approx(round(at_s / every_s), abs=1e-6)


def test_who_looks_half_as_often_wakes_with_the_others() -> None:
    slow_s = 0.3 + until(0.3, 0.5)
    fast_s = 0.3
    while fast_s < slow_s - 1e-9:
        fast_s += until(fast_s, 0.25)
    assert fast_s == pytest.approx(slow_s)


def test_who_wakes_early_does_not_wake_twice_for_one_moment() -> None:
    assert until(0.999, 0.5) == pytest.approx(0.501)


@pytest.mark.parametrize("now_s", [n / 97 for n in range(200)])
def test_it_is_half_as_long_as_asked_at_least_and_half_as_long_again_at_most(now_s: float) -> None:
    assert 0.5 * 0.5 <= until(now_s, 0.5) <= 1.5 * 0.5


def test_whoever_comes_at_any_time_waits_as_long_as_asked_on_average() -> None:
    assert sum(until(n / 1000, 0.25) for n in range(1000)) / 1000 == pytest.approx(0.25, abs=1e-3)
