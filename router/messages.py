"""What the router adds to a server's answer, without parsing it again: joining serialised parts merges them."""

from collections.abc import Iterable

from router.policy import Chosen
from router.scorers import Cost
from stoker.v1 import inference_pb2, pick_pb2


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


def pick(chosen: Chosen) -> pick_pb2.Pick:
    """Why a server was chosen."""
    price = chosen.candidate.cost
    return pick_pb2.Pick(
        reason=chosen.reason, cost=cost(price), candidates=chosen.candidates, cached_tokens=price.cached_tokens
    )


def with_pick(data: bytes, chosen: Chosen) -> bytes:
    """The first part, which now says why its server was chosen."""
    started = inference_pb2.Started(pick=pick(chosen))
    return data + inference_pb2.GenerateStreamResponse(started=started).SerializeToString()


def without_started(part: inference_pb2.GenerateStreamResponse) -> bytes:
    """The first part of a continuation, for a client that was told before how its stream started. May be empty."""
    rest = inference_pb2.GenerateStreamResponse()
    rest.CopyFrom(part)
    rest.ClearField("started")
    return rest.SerializeToString()


def with_attempts(
    data: bytes, attempts: Iterable[inference_pb2.Attempt], exactness: "inference_pb2.Exactness.ValueType"
) -> bytes:
    """The last part, which now says what was tried and how exact the whole is."""
    finished = inference_pb2.Finished(attempts=attempts, exactness=exactness)
    return data + inference_pb2.GenerateStreamResponse(finished=finished).SerializeToString()
