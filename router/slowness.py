"""Which endpoint's first tokens come far later than predicted, while the others' do not. Pure.

Late alone is no fault: when all are late, the load is high or the prediction is wrong. And a server that measures
itself right is not late at all, only dear: then its cost keeps requests away. What is left is the server that is
slow and says otherwise.
"""

from collections import deque
from collections.abc import Hashable
from statistics import median
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

WINDOW_S = 30.0
MIN_SAMPLES = 5
MAX_SAMPLES = 20
# Below this a prediction says nothing: the machines' own noise is as large.
FLOOR_MS = 200.0
# How late, as a multiple of what was predicted, and of the others' lateness.
FAR = 5.0
THAN_OTHERS = 3.0


class Slowness(Generic[K]):
    """Lateness of the latest first tokens, by endpoint."""

    def __init__(self) -> None:
        self._late: dict[K, deque[tuple[float, float]]] = {}

    def observe(self, key: K, now_s: float, ttft_ms: float, predicted_ms: float) -> None:
        """A first token came after `ttft_ms`."""
        late = self._late.setdefault(key, deque(maxlen=MAX_SAMPLES))
        late.append((now_s, ttft_ms / max(predicted_ms, FLOOR_MS)))

    def slow(self, key: K, now_s: float) -> bool:
        """Whether the endpoint is far slower than predicted, and than the others within the same time."""
        came = self._late.get(key)
        if not came or came[-1][1] < FAR:
            return False  # as nearly all are: only who comes late makes an endpoint slower than it was
        own = self._lateness(key, now_s)
        if own is None or own < FAR:
            return False
        others = [late for other in self._late if other != key and (late := self._lateness(other, now_s)) is not None]
        return bool(others) and own >= THAN_OTHERS * median(others)

    def forget(self, key: K) -> None:
        """The endpoint begins anew, or is gone."""
        self._late.pop(key, None)

    def _lateness(self, key: K, now_s: float) -> float | None:
        recent = [late for at_s, late in self._late.get(key, ()) if now_s - at_s <= WINDOW_S]
        return median(recent) if len(recent) >= MIN_SAMPLES else None
