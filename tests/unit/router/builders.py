"""Short ways to the router's inputs."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from discovery.catalog import CatalogEntry, CatalogState, CatalogView, ZoneView
from discovery.endpoint import Endpoint, Load, ModelState, Residency
from router.ledger import Key
from router.request import Request
from router.snapshot import Snapshot, build

MODEL = "m"
HOT = ModelState(MODEL, Residency.HOT, 4096)


def endpoint(server: str = "a-1", zone: str = "a", **changes: Any) -> Endpoint:
    fields: dict[str, Any] = {
        "server": server,
        "address": f"{server}:1",
        "zone": zone,
        "epoch": f"{server}-e1",
        "engine": "sim",
        "models": (HOT,),
        "max_streams": 8,
    }
    return Endpoint(**{**fields, **changes})


def key(of: Endpoint) -> Key:
    return of.server, of.epoch


def request(prompt_tokens: int = 100, output_tokens: int = 100, session: int = 0) -> Request:
    return Request("r", MODEL, prompt_tokens, output_tokens, session)


def view(
    endpoints: Sequence[Endpoint], states: dict[str, CatalogState] | None = None, confirmed_at_s: float | None = 0.0
) -> CatalogView:
    """A view in which every server passes, but for those whose state is given."""
    zones: dict[str, dict[str, CatalogEntry]] = {}
    for each in endpoints:
        state = (states or {}).get(each.server, CatalogState.PASSING)
        zones.setdefault(each.zone, {})[each.server] = CatalogEntry(each, state)
    return CatalogView(
        MappingProxyType({zone: ZoneView(zone, MappingProxyType(es), confirmed_at_s) for zone, es in zones.items()})
    )


def snapshot(
    *endpoints: Endpoint, states: dict[str, CatalogState] | None = None, dead: frozenset[Key] = frozenset()
) -> Snapshot:
    return build(view(endpoints, states), dead)


def load(**figures: Any) -> Load:
    return Load(**figures)
