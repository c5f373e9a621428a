import pytest

from model_server.residency.failures import Failures
from stoker_common.refusal import Code, Refusal
from tests.fakes.clock import FakeClock


def test_a_model_that_fails_is_left_alone_for_longer_each_time_and_as_before_once_it_was_loaded() -> None:
    clock = FakeClock()
    failures = Failures(clock)
    for backoff_s in (5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 120.0):
        failures.note("m", "no memory")
        with pytest.raises(Refusal) as refused:
            failures.check("m")
        assert (refused.value.code, refused.value.reason) == (Code.UNAVAILABLE, "MODEL_FAILED")
        assert refused.value.retry_after_s == backoff_s
        assert "no memory" in refused.value.message
        failures.check("another")
        clock.advance(backoff_s)
        failures.check("m")
    failures.forget("m")
    assert failures.note("m", "again").backoff_s == 5.0


def test_who_waited_hears_why_though_it_was_loaded_since() -> None:
    failures = Failures(FakeClock())
    failure = failures.note("m", "no memory")
    failures.forget("m")
    assert "no memory" in failure.refusal().message
