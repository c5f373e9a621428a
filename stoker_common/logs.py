"""Logs: one JSON object a line, with the request it is about. Prompts and keys are never logged: lengths and hashes."""

import datetime
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TextIO

from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

_bound: ContextVar[MappingProxyType[str, str]] = ContextVar("stoker_log_fields", default=MappingProxyType({}))


def configure(level: str, process: str, stream: TextIO | None = None) -> None:
    """Make this process's logs JSON lines on `stream` (None: stderr), from `level` (`INFO`) on.

    `process` says who logs, such as `router a-1`. Replaces what was configured before. Raises ValueError for a level
    that does not exist.
    """
    levels = logging.getLevelNamesMapping()
    if level.upper() not in levels:
        raise ValueError(f"there is no log level {level}; give one of {', '.join(levels)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    fields = {"asctime": "time", "levelname": "level", "name": "logger"}
    handler.setFormatter(
        _Formatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=fields, static_fields={"process": process}
        )
    )
    handler.addFilter(_add_bound)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


@contextmanager
def bound(**fields: str) -> Iterator[None]:
    """Add the fields, such as `request_id`, to every line that this task (and tasks it starts) logs in the body."""
    token = _bound.set(MappingProxyType({**_bound.get(), **fields}))
    try:
        yield
    finally:
        _bound.reset(token)


class _Formatter(JsonFormatter):
    """JSON with times in UTC, to the millisecond. Control characters come out escaped, as JSON has them."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """The record's time, as RFC 3339 writes it."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _add_bound(record: logging.LogRecord) -> bool:
    """Put the bound fields and the trace's id on the record, where it does not say otherwise itself."""
    for name, value in _bound.get().items():
        record.__dict__.setdefault(name, value)
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        record.__dict__.setdefault("trace_id", trace.format_trace_id(span.trace_id))
    return True
