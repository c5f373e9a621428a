"""One request is one trace: from the client's call through the router and the server to the engine."""

import itertools

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from discovery.memory import MemoryCatalog
from stoker_common import tracing
from tests.fakes.fleet import running_server, server_settings
from tests.fakes.inference import channel_to, generation, stream
from tests.fakes.mesh import router
from tests.fakes.until import until

pytestmark = pytest.mark.integration


async def test_the_spans_of_client_router_server_and_engine_hang_together() -> None:
    spans = InMemorySpanExporter()
    traces = tracing.configure("test", exporter=spans)
    catalog = MemoryCatalog(("zone-a",))
    settings = server_settings(zone="zone-a", server_id="zone-a-0")
    async with (
        running_server(settings, registrar=catalog.registrar("zone-a"), traces=traces),
        router(catalog, "zone-a", traces) as routing,
        channel_to(f"127.0.0.1:{routing.port}") as channel,
    ):
        await until(lambda: len(routing.fleet.snapshot.members) == 1)
        with traces.span("client.generate"):
            async for _ in stream(channel, generation("a secret prompt", max_tokens=3), metadata=tracing.inject()):
                pass
        names = ["client.generate", "router.generate", "router.attempt", "server.generate", "engine.generate"]
        await until(lambda: len(spans.get_finished_spans()) == len(names))

    by_name: dict[str, ReadableSpan] = {span.name: span for span in spans.get_finished_spans()}
    assert set(by_name) == set(names)
    assert len({span.context.trace_id for span in by_name.values() if span.context}) == 1
    for above, below in itertools.pairwise(names):
        parent, context = by_name[below].parent, by_name[above].context
        assert parent is not None and context is not None
        assert parent.span_id == context.span_id, f"{below} is not below {above}"
    attempt = by_name["router.attempt"].attributes or {}
    assert (attempt["stoker.server"], attempt["stoker.pick"]) == ("zone-a-0", "only candidate")
    costs = {name.removeprefix("stoker.cost.") for name in attempt if name.startswith("stoker.cost.")}
    assert {"ready_ms", "queue_ms", "prefill_ms", "decode_ms", "zone_ms", "total_ms"} <= costs
    for which in ("expected", "actual"):
        time_ms = attempt[f"stoker.first_token_ms.{which}"]
        assert isinstance(time_ms, float) and time_ms > 0, which
    assert "secret" not in "".join(span.to_json() for span in by_name.values())
