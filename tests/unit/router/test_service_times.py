import pytest

from router.service_times import ServiceTimes


def test_nothing_is_known_before_the_first_has_finished() -> None:
    times = ServiceTimes()
    assert times.request_s("m") is None
    assert times.expected_s("m", 100) is None


def test_learns_what_a_request_and_its_tokens_take() -> None:
    times = ServiceTimes()
    for _ in range(200):
        times.observe("m", 2.0, 100)
    assert times.request_s("m") == pytest.approx(2.0)
    assert times.expected_s("m", 50) == pytest.approx(1.0)
    assert times.request_s("other") is None


def test_many_short_answers_do_not_make_long_ones_dear() -> None:
    times = ServiceTimes()
    for i in range(400):
        times.observe("m", *((0.1, 1) if i % 2 else (1.0, 100)))
    expected_s = times.expected_s("m", 100)
    assert expected_s is not None
    assert expected_s < 1.5


def test_what_changes_is_learned_again() -> None:
    times = ServiceTimes()
    times.observe("m", 10.0, 10)
    for _ in range(100):
        times.observe("m", 1.0, 10)
    request_s = times.request_s("m")
    assert request_s is not None
    assert request_s < 1.1
