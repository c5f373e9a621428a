"""What a pick costs, by the number of endpoints: the policy alone, as the router calls it for each request."""

import random
import time
from types import MappingProxyType

from bench.relay.script import MODEL
from discovery.catalog import CatalogEntry, CatalogState, CatalogView, ZoneView
from discovery.endpoint import Endpoint, Load, ModelState, Residency
from router.ejection import Breakers, EjectionRules
from router.ledger import Ledger
from router.policy import Conditions, Policy
from router.request import Request
from router.room import RoomRules, Rooms
from router.scorers import Rates
from router.snapshot import build

_PICKS = 2000


def pick_us(endpoints: int) -> float:
    """The median of five rounds, in us a pick."""
    rng = random.Random(1)
    ledger = Ledger(time.monotonic)
    entries = {}
    for i in range(endpoints):
        load = Load(running=rng.randrange(32), waiting=rng.randrange(4), prefill_tokens_per_second=2e4, itl_ms=20.0)
        model = ModelState(MODEL, Residency.HOT, 8192)
        endpoint = Endpoint(f"s-{i}", f"h:{i}", "zone-a", f"e-{i}", "sim", (model,), max_streams=64, load=load)
        entries[endpoint.server] = CatalogEntry(endpoint, CatalogState.PASSING)
        ledger.report((endpoint.server, endpoint.epoch), load)
    zone = ZoneView("zone-a", MappingProxyType(entries), 0.0)
    snapshot = build(CatalogView(MappingProxyType({"zone-a": zone})), frozenset())
    conditions = Conditions(
        accounts=ledger.accounts,
        breakers=Breakers(EjectionRules(), time.monotonic, rng),
        held={},
        ways_ms={},
        now_s=time.monotonic(),
        rooms=Rooms(RoomRules(), ledger, time.monotonic),
    )
    policy = Policy("zone-a", Rates())
    request = Request("r", MODEL, 512, 256, 0)
    times: list[float] = []
    for _ in range(5):
        began_s = time.perf_counter()
        for _ in range(_PICKS):
            policy.choose(request, snapshot, (), conditions, rng)
        times.append((time.perf_counter() - began_s) / _PICKS * 1e6)
    return sorted(times)[2]
