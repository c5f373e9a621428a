"""How far predictions were off, by server, model and term."""

import pytest
from google.protobuf.duration_pb2 import Duration

from router.calibration import MOST, WINDOW_S, Calibration, Sample, sample
from router.first_tokens import Expectation
from stoker.v1 import inference_pb2
from tests.fakes.clock import FakeClock

ONE, OTHER = ("a-1", "e"), ("a-2", "e")
EXPECTED = Expectation(ready_ms=5, queue_ms=105, prefill_ms=40, rest_ms=2)


def lasted(ms: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(int(ms * 1e6))
    return made


def seen(*pairs: tuple[float, float]) -> Calibration:
    calibration = Calibration(FakeClock())
    for predicted_ms, actual_ms in pairs:
        calibration.observe(ONE, "m", Sample(predicted_ms, actual_ms))
    return calibration


def test_error_counts_either_way_and_bias_tells_which() -> None:
    (figures,) = seen((150, 100), (90, 100), (80, 100), (400, 100)).figures(ONE)
    assert (figures.model, figures.requests) == ("m", 4)
    assert figures.error == pytest.approx(0.35)  # of 0.5, 0.1, 0.2 and 3
    assert figures.bias == pytest.approx(0.2)
    assert figures.terms == {}


def test_a_request_is_told_apart_into_terms_that_add_up() -> None:
    timings = inference_pb2.Timings(load=lasted(1), queue=lasted(60), prefill=lasted(50))
    terms = sample(EXPECTED, 118.0, timings).terms
    assert {name: (term.predicted_ms, term.actual_ms) for name, term in terms.items()} == {
        "ready": pytest.approx((5, 1)),
        "queue": pytest.approx((105, 60)),
        "prefill": pytest.approx((40, 50)),
        "rest": pytest.approx((2, 7)),
    }


def test_a_server_that_cannot_tell_has_no_terms_but_a_total() -> None:
    told = sample(EXPECTED, 100.0, inference_pb2.Timings(queue=lasted(60)))
    assert not told.terms
    assert told.off == pytest.approx(0.52)


def test_terms_are_medians_of_their_own() -> None:
    calibration = Calibration(FakeClock())
    for queue_ms in (10, 60, 300):
        timings = inference_pb2.Timings(queue=lasted(queue_ms), prefill=lasted(40))
        calibration.observe(ONE, "m", sample(EXPECTED, queue_ms + 40.0, timings))
    (figures,) = calibration.figures(ONE)
    assert figures.terms["queue"] == pytest.approx((105, 60, 95))
    assert figures.terms["prefill"] == pytest.approx((40, 40, 0))


def test_each_server_and_model_has_its_own_and_what_is_gone_is_forgotten() -> None:
    calibration = seen((100, 100))
    calibration.observe(ONE, "n", Sample(300, 100))
    calibration.observe(OTHER, "m", Sample(50, 100))
    assert [(each.model, each.error) for each in calibration.figures(ONE)] == [("m", 0), ("n", 2)]
    calibration.keep([OTHER])
    assert calibration.figures(ONE) == []
    assert [each.bias for each in calibration.figures(OTHER)] == [-0.5]


def test_only_the_latest_count() -> None:
    clock = FakeClock()
    calibration = Calibration(clock)
    for actual_ms in [100.0] * 5 + [200.0] * MOST:
        calibration.observe(ONE, "m", Sample(100, actual_ms))
    (figures,) = calibration.figures(ONE)
    assert (figures.requests, figures.error) == (MOST, 0.5)
    clock.advance(WINDOW_S + 1)
    assert calibration.figures(ONE) == []


def test_what_took_no_time_says_nothing() -> None:
    assert seen((10, 0)).figures(ONE) == []
