"""What a server of our own HTTP/2 shows Prometheus: what is open, what waits, what its limits refused."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stoker_common.http2.bounds import KINDS, Bounds
from stoker_common.http2.frames import ErrorCode


class Http2Collector(Collector):
    """Reads what the server counts anyway, in the exporter's thread: numbers alone, none of which it changes."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds

    def collect(self) -> Iterator[Metric]:
        """The figures as they are now."""
        bounds = self._bounds
        yield GaugeMetricFamily("stoker_http2_connections", "Connections of clients", value=bounds.connections)
        yield GaugeMetricFamily("stoker_http2_streams", "Streams on them that are not over", value=bounds.streams)
        held = GaugeMetricFamily("stoker_http2_held_bytes", "What waits, of all connections", labels=["limit"])
        for kind, pool in bounds.pools.items():
            held.add_metric([kind], pool.most_bytes - pool.free_bytes)
        yield held
        # At 0 from the start: a rate over a series that appears with its first event misses that event.
        refused = CounterMetricFamily("stoker_http2_refused", "What a limit refused", labels=["limit"])
        for kind in KINDS:
            refused.add_metric([kind], bounds.refused.get(kind, 0))
        yield refused
        faults = CounterMetricFamily("stoker_http2_faults", "Connections ended by a client's fault", labels=["code"])
        for code in ErrorCode:
            if code is not ErrorCode.NO_ERROR:
                faults.add_metric([code.name], bounds.faults.get(code.name, 0))
        yield faults

    def describe(self) -> Iterable[Metric]:
        """None in advance: what it would say is what `collect` says."""
        return ()
