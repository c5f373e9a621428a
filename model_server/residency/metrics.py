"""What a server counts of its models' comings and goings. Labels: its own models, and where they can be."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from discovery.endpoint import ModelState, Residency

# From a small model that wakes to a large one that is fetched.
_LOAD_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


class ResidencyMetrics:
    """The counters; `watch` adds where each model is now."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.loads = Counter(
            "stoker_server_model_loads", "Times a model was made hot, by where it was and how it ended",
            ["model", "was", "outcome"], registry=registry,
        )  # fmt: skip
        self.load_seconds = Histogram(
            "stoker_server_model_load_seconds", "From the beginning of a load, wake or fetch until it answered",
            ["model", "was"], buckets=_LOAD_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.evictions = Counter(
            "stoker_server_model_evictions", "Times a model made room for another", ["model"], registry=registry
        )

    def watch(self, states: Callable[[], Sequence[ModelState]]) -> None:
        """Read where each model is at each scrape."""
        self._registry.register(_Where(states))


class _Where(Collector):
    def __init__(self, states: Callable[[], Sequence[ModelState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        where = GaugeMetricFamily(
            "stoker_server_model_residency", "1 for where a model is on this server", labels=["model", "residency"]
        )
        for state in self._states():
            for residency in Residency:
                where.add_metric([state.name, residency.value], float(residency is state.residency))
        yield where

    def describe(self) -> Iterable[Metric]:
        return ()
