import random

import pytest

from model_server.slope import SureSlope

pytestmark = pytest.mark.unit


def of(per_token: float, sizes: list[float], noise: float = 0.05, base: float = 6.0, every_s: float = 1.0) -> float:
    rng, slope = random.Random(1), SureSlope(300.0)
    for place, size in enumerate(sizes):
        slope.add(size, (base + per_token * size) * rng.gauss(1.0, noise), place * every_s)
    return slope.value


_SIZES = random.Random(2)
VARIED = [_SIZES.uniform(1e3, 2e5) for _ in range(60)]


def test_it_is_found_through_noise() -> None:
    assert of(4e-5, VARIED) == pytest.approx(4e-5, rel=0.15)


def test_where_sizes_make_no_difference_nothing_is_laid_to_them() -> None:
    assert of(0.0, VARIED) == 0.0


def test_where_sizes_are_alike_nothing_is_told() -> None:
    """All that a step takes would be laid to contexts, and a server with one stream look as if it was full."""
    assert of(4e-5, [1000.0] * 60) == of(4e-5, [1000.0] * 60, noise=0.0) == 0.0


def test_what_falls_with_size_is_no_slope() -> None:
    assert of(-2e-5, VARIED) == 0.0


def test_a_few_points_tell_nothing_and_old_ones_are_no_points() -> None:
    assert of(4e-5, VARIED[:7], noise=0.0) == 0.0
    assert of(4e-5, VARIED, noise=0.0, every_s=100.0) == 0.0
