"""When a process starts again."""

import random

import pytest

from stoker_client.mesh.restarts import Failures, RestartPolicy

pytestmark = pytest.mark.unit

POLICY = RestartPolicy(max_failures=4, window_s=100.0, first_s=1.0, most_s=3.0)


def test_pauses_double_up_to_the_most_and_vary_by_half() -> None:
    rng = random.Random(1)
    for failures, whole_s in ((1, 1.0), (2, 2.0), (3, 3.0), (9, 3.0)):
        pauses = [POLICY.delay_s(failures, rng) for _ in range(200)]
        assert whole_s / 2 <= min(pauses) < 0.6 * whole_s
        assert 0.9 * whole_s < max(pauses) <= whole_s


def test_gives_up_at_the_limit_within_the_window() -> None:
    failures = Failures(POLICY, random.Random(1))
    assert [failures.next_start_s(now, 1) is None for now in (0.0, 1.0, 2.0, 3.0)] == [False, False, False, True]


def test_failures_age() -> None:
    failures = Failures(POLICY, random.Random(1))
    assert all(failures.next_start_s(now * 40.0, 1) is not None for now in range(20))
    assert failures.count == 3


def test_wrong_settings_are_not_tried_again() -> None:
    assert Failures(POLICY, random.Random(1)).next_start_s(0.0, 2) is None
