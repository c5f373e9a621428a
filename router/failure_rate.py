"""How many of an endpoint's recent requests failed. Pure: fed with outcomes and the time."""

from collections import deque

# Half of at least so many requests within the window (RELIABILITY.md, "Rules worth having").
MIN_REQUESTS = 20
MAX_SHARE = 0.5
WINDOW_S = 30.0


class FailureRate:
    """Outcomes of the last `WINDOW_S` seconds, in buckets of a tenth of it: bounded however many requests there are."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: deque[tuple[int, int, int]] = deque()  # number, requests, failures

    def add(self, now_s: float, *, failed: bool) -> None:
        """A request ended."""
        number = int(now_s / WINDOW_S * 10)
        requests = failures = 0
        if self._buckets and self._buckets[-1][0] == number:
            _, requests, failures = self._buckets.pop()
        self._buckets.append((number, requests + 1, failures + failed))
        while self._buckets[0][0] <= number - 10:
            self._buckets.popleft()

    def tripped(self, now_s: float) -> bool:
        """Whether too many failed."""
        oldest = int(now_s / WINDOW_S * 10) - 10
        recent = [bucket for bucket in self._buckets if bucket[0] > oldest]
        requests = sum(bucket[1] for bucket in recent)
        return requests >= MIN_REQUESTS and sum(bucket[2] for bucket in recent) >= MAX_SHARE * requests
