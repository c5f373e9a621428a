import random

import pytest

from model_server.attention import AttentionFit

pytestmark = pytest.mark.unit


def fit(median: float, spread: float, noise: float, attention: float = 20_000.0, seed: int = 1) -> float:
    """What is found from 400 prompts of such lengths on a server that computes 50 tokens a ms."""
    rng, found = random.Random(seed), AttentionFit()
    for at_s in range(400):
        tokens = min(120_000.0, median * rng.lognormvariate(0.0, spread))
        took = 15 + tokens / 50 * (1 + tokens / 2 / attention)
        found.add(tokens, 0.0, took * max(0.3, rng.gauss(1.0, noise)), float(at_s))
    return found.tokens


def test_it_is_found_where_lengths_differ() -> None:
    assert fit(8000, 1.2, 0.0) == pytest.approx(20_000, rel=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_found_through_noise_within_a_half(seed: int) -> None:
    assert fit(8000, 1.2, 0.3, seed=seed) == pytest.approx(20_000, rel=0.5)


@pytest.mark.parametrize("seed", range(4))
def test_short_prompts_do_not_tell_it(seed: int) -> None:
    assert fit(400, 0.5, 0.3, seed=seed) == 0.0


def test_what_was_cached_counts_as_before_it() -> None:
    found = AttentionFit()
    for place in range(40):
        tokens, after = 500.0 + 100 * (place % 7), 3000.0 * (place % 5)
        found.add(tokens, after, 5 + tokens / 50 * (1 + (after + tokens / 2) / 10_000), float(place))
    assert found.tokens == pytest.approx(10_000, rel=0.01)


def test_a_few_points_tell_nothing() -> None:
    found = AttentionFit()
    for tokens in (100.0, 1000.0, 10_000.0, 50_000.0) * 3:
        found.add(tokens, 0.0, tokens * (1 + tokens / 1e4), 0.0)
    assert found.tokens == 0.0


def test_a_point_that_was_larger_is_as_if_added_so() -> None:
    one, other = AttentionFit(), AttentionFit()
    for place in range(30):
        tokens, took = 1000.0 * (1 + place % 6), 10.0 + place % 6
        one.add(tokens, 0.0, took + tokens * tokens / 1e6, float(place))
        other.add(tokens, 0.0, took + tokens * tokens / 1e6, float(place))
    one.add(300.0, 100.0, 20.0, 30.0)
    one.extend(500.0, 0.0)
    # As one point, of the same tokens, the same distances before them.
    other.add(800.0, (300 * 250 + 500 * 250) / 800 - 400, 20.0, 30.0)
    assert one.tokens == pytest.approx(other.tokens)
