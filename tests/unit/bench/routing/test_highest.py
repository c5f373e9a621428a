import pytest

from bench.routing.highest import bisected


@pytest.mark.parametrize("limit", [1.5, 7.0, 63.9])
def test_bisection_finds_the_limit(limit: float) -> None:
    found = bisected(lambda load: load <= limit, 1.0, 64.0, 1.02)
    assert found <= limit < found * 1.03
