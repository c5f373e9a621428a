"""How a request ended, told once: its metrics and its line in the log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from router.flight import Flight
from router.metrics import RouterMetrics
from stoker_common.refusal import Refusal

log = logging.getLogger(__name__)


def over(flight: Flight, metrics: RouterMetrics, **more: object) -> None:
    """The request is over. `more` goes into the log's line."""
    metrics.observe(flight)
    if log.isEnabledFor(logging.INFO):
        log.info("request", extra={**flight.summary(), **more})


@contextmanager
def failing(flight: Flight) -> Iterator[None]:
    """What leaves the block as an exception is how the request ended. A cancel is what it was from the start."""
    try:
        yield
    except Refusal as refusal:
        flight.outcome = refusal.code.name.lower()
        raise
    except Exception:
        flight.outcome = "internal"
        raise
