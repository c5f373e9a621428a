"""A budget in steps of a clock."""

import pytest

from stoker_common.http2.bucket import Bucket
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.unit


def test_so_many_at_once_and_so_many_a_second() -> None:
    clock = FakeClock()
    bucket = Bucket(3, 2.0, clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    clock.advance(1.0)
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    clock.advance(100.0)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


def test_what_is_not_there_is_not_taken() -> None:
    bucket = Bucket(10, 0.0, FakeClock())
    assert not bucket.take(11.0)
    assert bucket.take(10.0)


def test_what_is_earned_is_capped() -> None:
    bucket = Bucket(10, 0.0, FakeClock())
    assert bucket.take(10.0)
    bucket.earn(4.0)
    assert bucket.take(4.0) and not bucket.take()
    bucket.earn(1000.0)
    assert bucket.take(10.0) and not bucket.take()
