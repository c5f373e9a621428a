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
    )


def with_pick(data: bytes, chosen: Chosen) -> bytes:
    """The first part, which now says why its server was chosen."""
    pick = pick_pb2.Pick(reason=chosen.reason, cost=cost(chosen.candidate.cost), candidates=chosen.candidates)
    started = inference_pb2.Started(pick=pick)
    return data + inference_pb2.GenerateStreamResponse(started=started).SerializeToString()


def with_attempts(data: bytes, attempts: Iterable[inference_pb2.Attempt]) -> bytes:
    """The last part, which now says what was tried."""
    finished = inference_pb2.Finished(attempts=attempts)
    return data + inference_pb2.GenerateStreamResponse(finished=finished).SerializeToString()
