"""Traces: OpenTelemetry spans, sent by OTLP where that is configured and free of charge where it is not."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import Token
from dataclasses import dataclass

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from stoker_common.failure import first_refusal

# OpenTelemetry's own variable: whoever sets it for all his programs need not set ours.
ENDPOINT_ENV = "OTEL_EXPORTER_OTLP_ENDPOINT"
# A collector that does not answer must not hold up a process that exits.
EXPORT_TIMEOUT_S = 2

_W3C = TraceContextTextMapPropagator()
_FIELDS = _W3C.fields

Attributes = Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class Tracing:
    """A process's tracer. `provider` is None where spans go nowhere."""

    tracer: Tracer
    provider: TracerProvider | None = None

    def span(
        self,
        name: str,
        *,
        parent: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | Callable[[], Attributes] | None = None,
    ) -> AbstractContextManager[Span]:
        """A span around the body, current in it, under `parent` (default: the current span).

        An exception marks it with its type, or with its code if it is a Refusal; never with its message, which may
        quote the prompt. Attributes that cost something to gather may come as a function, which is called if spans go
        anywhere.
        """
        if self.provider is None:
            return _Untraced(parent)
        return self._span(name, parent, kind, attributes() if callable(attributes) else attributes)

    @contextmanager
    def _span(self, name: str, parent: Context | None, kind: SpanKind, attributes: Attributes | None) -> Iterator[Span]:
        with self.tracer.start_as_current_span(
            name, parent, kind, attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, _kind(error)))
                raise

    def shutdown(self) -> None:
        """Send what waits to be sent. Blocks, 2 s or so at the most if the collector is away."""
        if self.provider is not None:
            self.provider.shutdown()


class _Untraced:
    """No span: what the caller sent goes on to whom we call, or the trace would break in two here."""

    __slots__ = ("_parent", "_token")

    def __init__(self, parent: Context | None) -> None:
        self._parent = parent
        self._token: Token[Context] | None = None

    def __enter__(self) -> Span:
        # Mostly nobody has sent a trace, and none is there to be hidden.
        if self._parent is not None and (self._parent or otel_context.get_current()):
            self._token = otel_context.attach(self._parent)
        return trace.INVALID_SPAN

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            otel_context.detach(self._token)


def configure(
    service: str,
    endpoint: str | None = None,
    *,
    exporter: SpanExporter | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Tracing:
    """Tracing for the process called `service` (`stoker-router`).

    Spans go by OTLP over gRPC to `endpoint` (`http://host:4317`; https for TLS), else to the one that
    OTEL_EXPORTER_OTLP_ENDPOINT names, else nowhere. `exporter` takes them instead, each as it ends: for tests.
    Nothing global is set.
    """
    endpoint = endpoint or environ.get(ENDPOINT_ENV)
    if exporter is None and not endpoint:
        return Tracing(trace.NoOpTracer())
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(
        SimpleSpanProcessor(exporter) if exporter is not None else BatchSpanProcessor(_otlp(endpoint or ""))
    )
    return Tracing(provider.get_tracer("stoker"), provider)


def inject() -> tuple[tuple[str, str], ...]:
    """The current span as gRPC metadata for a call, empty if there is none."""
    if not otel_context.get_current() or not trace.get_current_span().get_span_context().is_valid:
        return ()
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return tuple(carrier.items())


def extract(metadata: Iterable[tuple[str, str | bytes]] | None) -> Context:
    """The context that a call's metadata carries: the parent for `span`. Metadata that makes no sense carries none."""
    carrier = {key: value for key, value in metadata or () if value and key in _FIELDS and isinstance(value, str)}
    return _W3C.extract(carrier, Context()) if carrier else Context()


def _otlp(endpoint: str) -> SpanExporter:
    # Imported where it is needed: it takes 0.2 s, which every start of the command would pay.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint, insecure=not endpoint.startswith("https://"), timeout=EXPORT_TIMEOUT_S)


def _kind(error: BaseException) -> str:
    refusal = first_refusal(error)
    return refusal.code.name if refusal is not None else type(error).__name__
