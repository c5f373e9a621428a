"""How a request ended, told once: its span, its metrics and its line in the log."""

import logging
from types import TracebackType

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from router.flight import Flight
from router.metrics import RouterMetrics
from stoker_common.refusal import Refusal
from stoker_common.tracing import Tracing

log = logging.getLogger(__name__)


class Flying:
    """A context around a whole relayed request: its span, its metrics, its line in the log, however it ends."""

    __slots__ = ("_flight", "_metrics", "_span")

    def __init__(self, flight: Flight, model: str, parent: Context, metrics: RouterMetrics, traces: Tracing) -> None:
        about = {"stoker.request_id": flight.request_id, "stoker.model": model}
        self._flight = flight
        self._metrics = metrics
        self._span = traces.span("router.generate", parent=parent, kind=SpanKind.SERVER, attributes=about)

    def __enter__(self) -> None:
        self._span.__enter__()
        self._metrics.in_flight.inc()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flight.outcome = "ok"
            else:
                failed(self._flight, error)
            over(self._flight, self._metrics)
        finally:
            self._metrics.in_flight.dec()
            self._span.__exit__(kind, error, traceback)


def over(flight: Flight, metrics: RouterMetrics, **more: object) -> None:
    """The request is over. `more` goes into the log's line."""
    metrics.observe(flight)
    if log.isEnabledFor(logging.INFO):
        log.info("request", extra={**flight.summary(), **more})


def failed(flight: Flight, error: BaseException) -> None:
    """The request ends with an exception. A cancel is what it was from the start."""
    if isinstance(error, Refusal):
        flight.outcome = error.code.name.lower()
    elif isinstance(error, Exception):
        flight.outcome = "internal"
