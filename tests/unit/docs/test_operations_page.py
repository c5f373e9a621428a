"""docs/operations.md names every metric that there is, and none that is not."""

import random
import re
from pathlib import Path
from typing import cast

from prometheus_client import CollectorRegistry

from discovery.endpoint import Load
from model_server.liveness import LifeState
from model_server.metrics import ServerMetrics
from model_server.residency.metrics import ResidencyMetrics
from router.admission_metrics import AdmissionMetrics
from router.call_transport import CallTransport
from router.client_link import ClientLinks
from router.ejection import Breakers, EjectionRules
from router.entry import Entry
from router.fleet import Fleet
from router.ledger import Ledger
from router.metrics import FleetCollector, RouterMetrics
from router.process_metrics import ProcessesCollector
from router.processes import Processes, ProcessRules
from router.readying import Readying
from router.reservations import ReservationMetrics
from stoker_common.backoff import Backoff
from stoker_common.http2.metrics import Http2Collector
from stoker_common.http2.server import Http2Server

PAGE = Path(__file__).resolve().parents[3] / "docs/operations.md"


def names(registry: CollectorRegistry) -> set[str]:
    """As Prometheus sees them: counters with their `_total`."""
    return {family.name + "_total" * (family.type == "counter") for family in registry.collect()}


def never() -> Backoff:
    raise AssertionError("nothing is started here")


def test_the_page_names_the_metrics_that_there_are(tmp_path: Path) -> None:
    router = CollectorRegistry()
    RouterMetrics(router)
    AdmissionMetrics(router)
    ReservationMetrics(router)
    ClientLinks(cast(Entry, None), float, router)
    Readying(CallTransport(), router, lambda: 0.0, lambda key, model: None)
    ledger = Ledger(lambda: 0.0)
    breakers = Breakers(EjectionRules(), lambda: 0.0, random.Random(0))
    router.register(FleetCollector(Fleet(ledger, lambda _: None), ledger, breakers, lambda: 0.0))
    router.register(ProcessesCollector(tmp_path, Processes(1, lambda n, fd: [], {}, ProcessRules(1.0), never, float)))
    server = ServerMetrics(["m"])
    ResidencyMetrics(server.registry).watch(tuple)
    server.watch(Load, lambda: LifeState.SERVING, lambda: 0)

    named = set(re.findall(r"`(stoker_(?:router|server|engine|accelerator|http2)_[a-z_]+)", PAGE.read_text()))
    server.registry.register(Http2Collector(Http2Server().bounds))
    assert named == names(router) | names(server.registry)
