"""A server's Prometheus metrics. Histograms are observed once a request; the engine's figures are read at each scrape.

Labels come from closed sets: models are those of the server (or `other`), outcomes are gRPC codes, states are
LifeState's.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from discovery.endpoint import Load
from model_server.liveness import LifeState
from stoker_common.metrics import ITL_BUCKETS_S, QUEUE_BUCKETS_S, TTFT_BUCKETS_S


class _Gauges(Collector):
    """Reads the server's state when somebody looks, and never else."""

    def __init__(
        self, load: Callable[[], Load | None], state: Callable[[], LifeState], in_flight: Callable[[], int]
    ) -> None:
        self._load = load
        self._state = state
        self._in_flight = in_flight

    def collect(self) -> Iterator[Metric]:
        yield _gauge("stoker_server_in_flight", "Requests in flight", self._in_flight())
        states = GaugeMetricFamily("stoker_server_state", "1 for the state the server is in", labels=["state"])
        for state in LifeState:
            states.add_metric([state.value], float(state is self._state()))
        yield states
        load = self._load()
        if load is not None:
            yield from _load_gauges(load)

    def describe(self) -> Iterable[Metric]:
        return ()


def _load_gauges(load: Load) -> Iterator[Metric]:
    yield _gauge("stoker_engine_running", "Sequences in the engine's batch", load.running)
    yield _gauge("stoker_engine_waiting", "Sequences that wait for a place in it", load.waiting)
    yield _gauge("stoker_engine_kv_usage_ratio", "Share of the KV cache in use", load.kv_usage)
    yield _gauge("stoker_engine_waiting_prompt_tokens", "Prompt tokens not yet computed", load.waiting_prompt_tokens)
    yield _gauge(
        "stoker_engine_prefill_tokens_per_second", "Prompt tokens computed a second", load.prefill_tokens_per_second
    )
    yield _gauge("stoker_accelerator_utilization_ratio", "Share of time in use (without one: CPU's)", load.utilization)
    yield _gauge("stoker_accelerator_memory_ratio", "Share of memory in use (without one: host's)", load.memory_usage)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


class ServerMetrics:
    """What a server counts. One registry each, so that many servers fit into one process."""

    def __init__(self, models: Iterable[str], registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "stoker_server_requests", "Requests that ended", ["model", "outcome"], registry=registry
        )
        self._tokens = Counter("stoker_server_tokens", "Tokens, by kind", ["model", "kind"], registry=registry)
        self._ttft = Histogram(
            "stoker_server_ttft_seconds", "From a request's arrival to its first token", ["model"],
            buckets=TTFT_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._itl = Histogram(
            "stoker_server_itl_seconds", "Mean time between a request's tokens", ["model"],
            buckets=ITL_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._queue = Histogram(
            "stoker_server_queue_seconds", "Waiting for the engine to begin", ["model"],
            buckets=QUEUE_BUCKETS_S, registry=registry,
        )  # fmt: skip
        # At 0 from the start: a rate over a series that appears with its first event misses that event.
        for model in models:
            self._requests.labels(model, "OK")
            for kind in ("prompt", "cached", "completion"):
                self._tokens.labels(model, kind)

    def watch(
        self, load: Callable[[], Load | None], state: Callable[[], LifeState], in_flight: Callable[[], int]
    ) -> None:
        """Read the server's state with these at each scrape."""
        self.registry.register(_Gauges(load, state, in_flight))

    def request_ended(self, model: str, outcome: str) -> None:
        """A request ended: `outcome` is a gRPC code's name, `model` one of the server's, or empty."""
        self._requests.labels(model or "other", outcome).inc()

    def generation_ended(
        self, model: str, *, prompt: int, cached: int, completion: int,
        ttft_s: float | None, itl_s: float | None, queue_s: float | None,
    ) -> None:  # fmt: skip
        """A generation left the engine, however it ended. None: it did not get that far."""
        if ttft_s is not None:
            self._tokens.labels(model, "prompt").inc(prompt)
            self._tokens.labels(model, "cached").inc(cached)
            self._tokens.labels(model, "completion").inc(completion)
            self._ttft.labels(model).observe(ttft_s)
        if itl_s is not None:
            self._itl.labels(model).observe(itl_s)
        if queue_s is not None:
            self._queue.labels(model).observe(queue_s)
