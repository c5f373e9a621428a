"""A router's record in Consul, for its clients: where it is, its zone, its epoch. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from discovery.agent_api import Answer
from discovery.catalog import CatalogState
from discovery.catalog_text import MAX_VALUE_BYTES, escape
from discovery.codec import ServiceRecord, encode, split_address
from discovery.consul_answer import disbelief, mapping, read_record
from discovery.consul_registrar import Form
from discovery.endpoint import Endpoint
from discovery.errors import EncodeError

SERVICE = "stoker-router"
# What of a model server's record a router has, too; the rest would say nothing.
_KEYS = frozenset({"format", "state", "zone", "epoch", "leaving-because"})


@dataclass(frozen=True, slots=True)
class RouterRecord:
    """A router that clients may ask. `passing`: whether its check says that it answers."""

    router: str
    address: str
    passing: bool


def encode_router(endpoint: Endpoint, *, leaving: str | None = None) -> ServiceRecord:
    """The record of a router, given as an endpoint without models. Raises EncodeError."""
    whole = encode(endpoint, leaving=leaving)
    meta = {key: value for key, value in whole.meta.items() if key in _KEYS}
    return ServiceRecord(whole.service_id, whole.address, whole.port, (), meta)


ROUTER = Form(SERVICE, encode_router, lambda endpoint: f"listens at {escape(endpoint.address)[:MAX_VALUE_BYTES]}")


def read_routers(answer: Answer) -> Sequence[RouterRecord] | None:
    """The routers of one zone that do not leave. None where the answer takes nothing from what is known: nobody leads
    there, or it lists no router at all, as a token without rights sees it. A row that cannot be read is passed over."""
    if disbelief(answer) or not isinstance(answer.rows, list) or not answer.rows:
        return None
    found: list[RouterRecord] = []
    for row in answer.rows:
        service = mapping(row, "Service")
        router = service.get("ID")
        if not isinstance(router, str):
            continue
        record, state = read_record(router, row, service)
        host = f"[{record.address}]" if ":" in record.address else record.address
        address = f"{host}:{record.port}"
        if state not in (CatalogState.LEAVING, CatalogState.MAINTENANCE) and _readable(address):
            found.append(RouterRecord(router, address, state is CatalogState.PASSING))
    return found


def _readable(address: str) -> bool:
    try:
        split_address(address)
    except EncodeError:
        return False
    return True
