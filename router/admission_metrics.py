"""What admission shows: who waits, for how long, and who is refused."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stoker_common.metrics import QUEUE_BUCKETS_S


class AdmissionMetrics(Collector):
    """Counted as it happens, but for the queues, which are read when Prometheus asks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queues: Callable[[], Mapping[str, tuple[int, float]]] = dict
        self.refusals = Counter(
            "stoker_router_refusals",
            "Requests that admission refused or gave up, by model and reason.",
            ("model", "reason"),
            registry=registry,
        )
        self.waited = Histogram(
            "stoker_router_queue_wait_seconds",
            "How long requests waited in the router, of those that did.",
            ("model",),
            buckets=QUEUE_BUCKETS_S,
            registry=registry,
        )
        registry.register(self)

    def watch(self, queues: Callable[[], Mapping[str, tuple[int, float]]]) -> None:
        """Where length and age in seconds of each model's queue are read."""
        self._queues = queues

    def collect(self) -> Iterator[Metric]:
        """The queues as they are now."""
        length = GaugeMetricFamily("stoker_router_queue_length", "Requests that wait for a server.", labels=["model"])
        oldest = GaugeMetricFamily(
            "stoker_router_queue_oldest_seconds", "How long the oldest of them has waited.", labels=["model"]
        )
        for model, (waiting, age_s) in self._queues().items():
            length.add_metric([model], waiting)
            oldest.add_metric([model], age_s)
        yield from (length, oldest)
