"""Logs, traces and metrics: what is in them, what must not be, and that they cost nothing when off."""

import io
import json
import logging
import socket
import timeit
import urllib.request
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry, Counter

from stoker_common import logs, metrics, tracing
from stoker_common.failure import where
from stoker_common.refusal import unavailable

pytestmark = pytest.mark.unit

log = logging.getLogger("stoker.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # pytest's own are taken off first: configure closes what it replaces.
    root.handlers.clear()
    stream = io.StringIO()
    logs.configure("info", "router a-1", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_its_fields_and_its_request(stream: io.StringIO) -> None:
    with logs.bound(request_id="r-1"), logs.bound(model="m"):
        log.info("picked", extra={"server": "a"})
    log.warning("later")
    log.debug("never")
    first, second = lines(stream)
    assert str(first.pop("time")).endswith("Z")
    # Another library in this process may add fields of its own to all records (vLLM does).
    assert (
        first.items()
        >= {
            "level": "INFO",
            "logger": "stoker.test",
            "message": "picked",
            "process": "router a-1",
            "server": "a",
            "request_id": "r-1",
            "model": "m",
        }.items()
    )
    assert "request_id" not in second


def test_control_characters_cannot_forge_lines(stream: io.StringIO) -> None:
    with logs.bound(request_id='a"}\n{"level": "ERROR"'):
        log.info("text\n\x1b[2Jtext")
    assert "\x1b" not in stream.getvalue()
    assert len(lines(stream)) == 1


def test_a_level_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="no log level loud; give one of CRITICAL"):
        logs.configure("loud", "router")


def test_where_an_error_came_from_is_told_without_its_message() -> None:
    def parse(prompt: str) -> None:
        try:
            int(prompt)
        except ValueError as error:
            raise ExceptionGroup(prompt, [RuntimeError(prompt)]) from error

    secret = "-".join(["my", "secret"])
    with pytest.raises(ExceptionGroup) as caught:
        parse(secret)
    text = where(caught.value)
    assert secret not in text
    for part in ("builtins.ValueError", "then", "builtins.ExceptionGroup", "in it", "builtins.RuntimeError", "parse"):
        assert part in text


def test_a_trace_goes_through_metadata_as_one(stream: io.StringIO) -> None:
    exporter = InMemorySpanExporter()
    client, server = (tracing.configure(name, exporter=exporter) for name in ("client", "server"))
    with client.span("call", attributes={"model": "m"}):
        metadata = tracing.inject()
        log.info("calling")
    with server.span("serve", parent=tracing.extract(metadata)), server.span("engine"):
        pass
    spans = {span.name: span for span in exporter.get_finished_spans()}
    contexts = {name: span.get_span_context() for name, span in spans.items()}
    assert len({context.trace_id for context in contexts.values() if context}) == 1
    parents = {name: span.parent.span_id if span.parent else None for name, span in spans.items()}
    ids = {name: context.span_id for name, context in contexts.items() if context}
    assert parents == {"call": None, "serve": ids["call"], "engine": ids["serve"]}
    assert spans["serve"].resource.attributes["service.name"] == "server"
    assert lines(stream)[0]["trace_id"] == metadata[0][1].split("-")[1]


def test_a_process_without_tracing_passes_the_trace_on() -> None:
    off = tracing.configure("router", environ={})
    sent = (("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),)
    with off.span("relay", parent=tracing.extract(sent)):
        assert tracing.inject() == sent
    assert tracing.inject() == ()
    off.shutdown()


def test_attributes_that_cost_something_are_gathered_where_spans_go_somewhere() -> None:
    gathered = list[str]()

    def attributes() -> dict[str, str]:
        gathered.append("")
        return {"model": "m"}

    exporter = InMemorySpanExporter()
    for traces in (tracing.configure("off", environ={}), tracing.configure("on", exporter=exporter)):
        with traces.span("call", attributes=attributes):
            pass
    (span,) = exporter.get_finished_spans()
    assert dict(span.attributes or {}) == {"model": "m"}
    assert len(gathered) == 1


@pytest.mark.parametrize(
    "metadata", [None, (), (("traceparent", "x"),), (("traceparent", b"\xff"),), (("tracestate", "=" * 9000),)]
)
def test_metadata_that_makes_no_sense_carries_no_trace(metadata: tuple[tuple[str, str | bytes], ...] | None) -> None:
    context = tracing.extract(metadata)
    assert not trace.get_current_span(context).get_span_context().is_valid


@pytest.mark.parametrize(
    ("error", "says"), [(unavailable("my secret prompt"), "UNAVAILABLE"), (KeyError("my secret prompt"), "KeyError")]
)
def test_a_failed_span_has_the_kind_of_the_error_and_no_message(error: Exception, says: str) -> None:
    exporter = InMemorySpanExporter()
    tracer = tracing.configure("server", exporter=exporter)
    with pytest.raises(type(error)), tracer.span("serve"):
        raise error
    (span,) = exporter.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, says)
    assert "secret" not in span.to_json()


def test_tracing_off_sets_nothing_global_and_costs_next_to_nothing() -> None:
    before = trace.get_tracer_provider()
    off = tracing.configure("router", environ={})

    def span() -> None:
        with off.span("pick"):
            pass

    # Each try is shorter than a turn on a busy processor: one of them has it to itself.
    cost_s = min(timeit.repeat(span, number=100, repeat=500)) / 100
    assert trace.get_tracer_provider() is before
    # 2 µs on an idle machine; 5 is the budget.
    assert cost_s < 5e-6


def test_the_environment_can_name_the_collector() -> None:
    on = tracing.configure("router", environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    assert on.provider is not None
    on.shutdown()


def test_metrics_are_served_until_closed() -> None:
    registry = CollectorRegistry()
    Counter("stoker_picks", "Picks.", ["reason"], registry=registry).labels("warm").inc()
    server = metrics.serve(registry, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.port}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            assert b'stoker_picks_total{reason="warm"} 1.0' in answer.read()
        with pytest.raises(OSError, match=rf"127.0.0.1:{server.port} \(.*choose another port"):
            metrics.serve(registry, "127.0.0.1", server.port)
    finally:
        server.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


@pytest.mark.parametrize("name", [name for name in dir(metrics) if name.endswith("_BUCKETS_S")])
def test_buckets_rise(name: str) -> None:
    buckets = getattr(metrics, name)
    assert list(buckets) == sorted(set(buckets))
