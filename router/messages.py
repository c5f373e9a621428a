"""What the router adds to a server's answer, without parsing it again: joining serialised parts merges them."""

from collections.abc import Iterable

from router.calibration import Figures
from router.first_tokens import Expectation, Line
from router.policy import Chosen
from router.scorers import Cost
from stoker.v1 import inference_pb2, pick_pb2, router_pb2


def cost(of: Cost) -> pick_pb2.Cost:
    """A cost as the API tells it."""
    return pick_pb2.Cost(
        ready_ms=of.ready_ms,
        queue_ms=of.queue_ms,
        prefill_ms=of.prefill_ms,
        decode_ms=of.decode_ms,
        zone_ms=of.zone_ms,
        total_ms=of.total_ms,
        ramp_ms=of.ramp_ms,
    )


def first_token(of: Expectation) -> pick_pb2.FirstToken:
    """When a first token is expected, as the API tells it."""
    return pick_pb2.FirstToken(ready_ms=of.ready_ms, queue_ms=of.queue_ms, prefill_ms=of.prefill_ms, rest_ms=of.rest_ms)


def pick(chosen: Chosen, expected: Expectation) -> pick_pb2.Pick:
    """Why a server was chosen, and when its first token was expected."""
    price = chosen.candidate.cost
    return pick_pb2.Pick(
        reason=chosen.reason,
        cost=cost(price),
        candidates=chosen.candidates,
        cached_tokens=price.cached_tokens,
        first_token_ms=expected.total_ms,
        first_token=first_token(expected),
    )


def calibration(of: Figures, learned: Line | None) -> router_pb2.Calibration:
    """How far predictions were off, and what they are made of now, as the API tells it."""
    terms = [
        router_pb2.CalibrationTerm(term=name, predicted_ms=predicted_ms, actual_ms=actual_ms, off_ms=off_ms)
        for name, (predicted_ms, actual_ms, off_ms) in of.terms.items()
    ]
    told = router_pb2.Calibration(model=of.model, requests=of.requests, error=of.error, bias=of.bias, terms=terms)
    if learned is not None:
        told.base_ms = learned.base_ms
        told.prefill_tokens_per_second = 1e3 / learned.per_token_ms if learned.per_token_ms else 0.0
    return told


def with_pick(data: bytes, why: pick_pb2.Pick) -> bytes:
    """The first part, which now says why its server was chosen."""
    response = inference_pb2.GenerateStreamResponse()
    response.started.pick.CopyFrom(why)
    return data + response.SerializeToString()


def without_started(part: inference_pb2.GenerateStreamResponse) -> bytes:
    """The first part of a continuation, for a client that was told before how its stream started. May be empty."""
    rest = inference_pb2.GenerateStreamResponse()
    rest.CopyFrom(part)
    rest.ClearField("started")
    return rest.SerializeToString()


def with_attempts(
    data: bytes, attempts: Iterable[inference_pb2.Attempt], exactness: "inference_pb2.Exactness.ValueType"
) -> bytes:
    """The last part, which now says what was tried, why, and how exact the whole is."""
    finished = inference_pb2.Finished(attempts=attempts, exactness=exactness)
    return data + inference_pb2.GenerateStreamResponse(finished=finished).SerializeToString()
