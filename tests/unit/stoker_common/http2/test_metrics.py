"""What Prometheus is shown: what is open, what waits, what was refused, and none of it when all has ended."""

import pytest
from prometheus_client import CollectorRegistry

from stoker_common.http2.frames import PING, head
from stoker_common.http2.limits import Limits
from stoker_common.http2.metrics import Http2Collector
from tests.unit.stoker_common.http2.kit import Client, Handlers, run, served, settle

pytestmark = pytest.mark.unit

PREFIX = "stoker_http2_"


def test_what_is_open_what_waits_and_what_was_refused() -> None:
    async def test() -> None:
        server = served(Handlers(), Limits(connections=2, server_metadata_bytes=2_000))
        registry = CollectorRegistry()
        registry.register(Http2Collector(server.bounds))

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(PREFIX + name, labels)

        assert value("refused_total", limit="metadata") == value("faults_total", code="PROTOCOL_ERROR") == 0
        first, second = Client(server), Client(server)
        Client(server, greet=False)
        holding = [first.open("Hold", b"") for _ in range(2)] + [second.open("Hold", b"")]
        large = first.open("Hold", b"", metadata=(("x", "v" * 4_000),))
        await first.hear()
        await second.hear()
        assert first.status(large) == 8
        assert value("connections") == 2
        assert value("streams") == server.streams == len(holding)
        assert value("held_bytes", limit="metadata") == sum(
            stream.metadata_bytes for each in (first, second) for stream in each.connection.streams.values()
        )
        assert value("refused_total", limit="connections") == value("refused_total", limit="metadata") == 1

        first.cancel(holding[0])
        await first.hear()
        assert value("streams") == 2
        second.frames(head(3, PING, 0, 0) + b"one")
        await settle()
        assert value("faults_total", code="FRAME_SIZE_ERROR") == 1
        assert value("connections") == value("streams") == 1
        await server.stop(None)
        assert value("connections") == value("streams") == value("held_bytes", limit="metadata") == 0

    run(test)
