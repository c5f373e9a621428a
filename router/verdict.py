"""Whether a request that finds no room may wait: the queue has a place, and the wait leaves time to be served. Pure."""

from dataclasses import dataclass

from stoker.v1.inference_pb2 import Progress
from stoker_common.refusal import Refusal, exhausted

# When coming back makes sense, whatever the figures say.
_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 0.1, 30.0
# Estimates are means, and what began together ends together, so places become free in lumps. Who would make it by a
# hair fails half of the time, after having cost a GPU as much as any.
_HEADROOM = 1.2


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a newcomer faces. Times in seconds, None where nothing is known yet."""

    ahead: int  # requests before it
    queued: int  # requests in the queue
    turn_s: float | None  # mean time between two that get their turn
    service_s: float | None  # expected time of this request once it has got its turn
    remaining_s: float | None  # until its deadline

    @property
    def wait_s(self) -> float | None:
        """Until its turn; None if nothing is known."""
        return None if self.turn_s is None else (self.ahead + 1) * self.turn_s


def may_wait(prospect: Prospect, limit: int, model: str) -> Refusal | None:
    """Why the request cannot wait for its turn; None if it can."""
    if prospect.queued >= limit:
        emptied_s = (prospect.turn_s or 0.0) * prospect.queued / 2
        return exhausted(
            f"{prospect.queued} requests wait for the model {model!r}, and this router lets {limit} wait",
            retry_after_s=bounded(emptied_s),
            reason="QUEUE_FULL",
        )
    wait_s = prospect.wait_s
    if wait_s is None or prospect.remaining_s is None:
        return None
    late_s = (wait_s + (prospect.service_s or 0.0)) * _HEADROOM - prospect.remaining_s
    if late_s <= 0:
        return None
    return exhausted(
        f"{prospect.ahead} requests wait before it for the model {model!r}: about {wait_s:.1f} s, and"
        f" {prospect.service_s or 0.0:.1f} s to be served, with {prospect.remaining_s:.1f} s to its deadline",
        retry_after_s=bounded(late_s),
        reason="WAIT_EXCEEDS_DEADLINE",
    )


def too_long(progress: Progress, remaining_s: float | None, model: str) -> Refusal | None:
    """Why a request cannot wait for a model that is being readied; None if it can, as far as anybody knows."""
    if remaining_s is None or not progress.HasField("remaining"):
        return None
    needs_s = progress.remaining.ToNanoseconds() / 1e9
    if needs_s <= remaining_s:
        return None
    return exhausted(
        f"the model {model!r} is being readied on {progress.server} and needs {needs_s:.1f} s more,"
        f" with {remaining_s:.1f} s to the deadline",
        retry_after_s=max(_SHORTEST_RETRY_S, needs_s),
        reason="READY_EXCEEDS_DEADLINE",
    )


def bounded(retry_after_s: float) -> float:
    """A time to come back after, within reason."""
    return min(max(retry_after_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
