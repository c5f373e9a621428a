import random
from collections.abc import Sequence

import pytest

from stoker_common.line import DecayedLine


def of(points: Sequence[tuple[float, float]], every_s: float = 0.0) -> float:
    line = DecayedLine(10.0)
    for place, (size, took) in enumerate(points):
        line.add(size, took, place * every_s)
    return line.slope


def test_a_line_is_found_again_through_noise() -> None:
    rng = random.Random(1)
    sizes = [rng.lognormvariate(6.0, 0.8) for _ in range(200)]
    assert of([(size, 20 + 0.05 * size + rng.gauss(0, 5)) for size in sizes]) == pytest.approx(0.05, rel=0.15)


def test_without_points_there_is_no_slope() -> None:
    assert of([]) == 0.0


@pytest.mark.parametrize("points", [[(1000, 50)], [(1000, 50), (1000, 50)], [(1000, 49), (1010, 51)]])
def test_where_sizes_are_alike_all_is_laid_to_them(points: list[tuple[float, float]]) -> None:
    assert of(points) == pytest.approx(0.05, rel=0.03)


@pytest.mark.parametrize(("points", "slope"), [([(100, 50), (1000, 40)], 0.1), ([(100, 1), (1000, 100)], 1.0)])
def test_the_slope_stays_between_what_all_lays_to_sizes_and_a_tenth_of_it(
    points: list[tuple[float, float]], slope: float
) -> None:
    through_zero = sum(took for _, took in points) / sum(size for size, _ in points)
    assert of(points) == pytest.approx(slope * through_zero)


def test_old_points_count_less() -> None:
    changed = [(100, 5.0), (1000, 50.0)] * 20 + [(100, 10.0), (1000, 100.0)] * 20
    assert of(changed, every_s=0.0) == pytest.approx(0.075)
    assert of(changed, every_s=5.0) == pytest.approx(0.1, rel=0.01)


def test_a_point_that_was_larger_is_as_if_added_so() -> None:
    line = DecayedLine(10.0)
    line.add(100, 50.0, 0.0)
    line.add(400, 90.0, 1.0)
    line.extend(500)
    whole = DecayedLine(10.0)
    whole.add(100, 50.0, 0.0)
    whole.add(900, 90.0, 1.0)
    assert line.slope == pytest.approx(whole.slope)
