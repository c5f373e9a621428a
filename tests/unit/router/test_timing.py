import pytest

from router.line import Line
from router.timing import Timings

KEY = ("a-1", "e1")


def test_without_observations_the_prior_holds() -> None:
    assert Line(100, 16).slope(0.3) == 0.3


def test_observations_at_one_place_say_nothing_of_the_slope() -> None:
    line = Line(100, 16)
    for _ in range(1000):
        line.observe(8, 20)
    assert line.slope(0.3) == pytest.approx(0.3)


def test_a_line_is_found_and_followed_when_it_turns() -> None:
    line = Line(100, 16)
    for x in (0, 20, 40) * 200:
        line.observe(x, 5 + 2 * x)
    assert line.slope(0.1) == pytest.approx(2, rel=0.1)
    for x in (0, 20, 40) * 300:
        line.observe(x, 5 - x)
    assert line.slope(0.1) == 0.0


def test_errors_of_predictions_are_averaged_and_forgotten() -> None:
    timings = Timings()
    timing = timings.learn(KEY, "m")
    timing.first_token(took_ms=100, predicted_ms=50)
    timing.first_token(took_ms=100, predicted_ms=100)
    assert timings.error(KEY)[0] == 2
    assert timings.error(KEY)[1] == pytest.approx(0.25)
    for _ in range(300):
        timing.first_token(took_ms=100, predicted_ms=90)
    assert timings.error(KEY)[0] == 302
    assert timings.error(KEY)[1] == pytest.approx(0.1, rel=0.01)
    timings.keep([])
    assert timings.error(KEY) == (0, 0.0)
    assert timings.get(KEY, "m") is None


def test_what_a_server_does_not_know_is_not_learned() -> None:
    timing = Timings().learn(KEY, "m")
    timing.pace(5, 0.0)
    assert timing.itl_ms_per_stream is None
