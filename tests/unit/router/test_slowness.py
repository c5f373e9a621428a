from router.failure_rate import FailureRate
from router.slowness import Slowness


def test_all_late_is_nobodys_fault() -> None:
    slowness: Slowness[str] = Slowness()
    for _ in range(10):
        slowness.observe("a", 0.0, 3000, 200)
        slowness.observe("b", 0.0, 2000, 200)
    assert not slowness.slow("a", 0.0)


def test_alone_there_is_nothing_to_compare_with() -> None:
    slowness: Slowness[str] = Slowness()
    for _ in range(10):
        slowness.observe("a", 0.0, 9000, 200)
    assert not slowness.slow("a", 0.0)


def test_noise_below_a_second_is_not_slow_however_little_was_predicted() -> None:
    slowness: Slowness[str] = Slowness()
    for _ in range(10):
        slowness.observe("a", 0.0, 900, 2)
        slowness.observe("b", 0.0, 5, 2)
    assert not slowness.slow("a", 0.0)
    for _ in range(10):
        slowness.observe("a", 0.0, 1100, 2)
    assert slowness.slow("a", 0.0)


def test_what_was_slow_long_ago_does_not_count() -> None:
    slowness: Slowness[str] = Slowness()
    for at_s in range(10):
        slowness.observe("a", float(at_s), 9000, 200)
        slowness.observe("b", float(at_s), 100, 200)
    assert slowness.slow("a", 10.0)
    assert not slowness.slow("a", 40.0)


def test_failures_older_than_the_window_do_not_count() -> None:
    rate = FailureRate()
    for _ in range(19):
        rate.add(0.0, failed=True)
    assert not rate.tripped(0.0)
    rate.add(31.0, failed=True)
    assert not rate.tripped(31.0)
    for _ in range(19):
        rate.add(40.0, failed=True)
    assert rate.tripped(40.0)
    assert not rate.tripped(90.0)
