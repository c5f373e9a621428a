"""Consul's health answer read row by row: what it says of each server. Pure; a hostile row harms only itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from discovery.agent_api import Answer
from discovery.catalog import CatalogState
from discovery.codec import ServiceRecord, decode
from discovery.endpoint import Endpoint
from discovery.errors import CatalogError, DecodeError

# A server that has not heard its leader for as long tells of the past. (A leader is given up after a few seconds.)
_MAX_LAST_CONTACT_MS = 10_000
_NODE_MAINTENANCE, _SERVICE_MAINTENANCE = "_node_maintenance", "_service_maintenance:"


@dataclass(frozen=True, slots=True)
class Reported:
    """What an answer says of one server. `endpoint` is None where its record cannot be read; `error` says why.

    `record` is what they were read from.
    """

    server: str
    state: CatalogState
    endpoint: Endpoint | None
    error: str = ""
    record: ServiceRecord | None = None


_NOTHING: Mapping[str, Reported] = MappingProxyType({})


def disbelief(answer: Answer) -> str:
    """Why this answer must not take anything from what is known; empty if it may."""
    if not answer.known_leader:
        return "the catalog has no known leader"
    if answer.last_contact_ms > _MAX_LAST_CONTACT_MS:
        return f"the catalog's server has not heard its leader for {answer.last_contact_ms / 1000:.0f} s"
    return ""


def read_answer(answer: Answer, zone: str, before: Mapping[str, Reported] = _NOTHING) -> dict[str, Reported]:
    """Each server's report, by id. Raises CatalogError if the answer is not a list; a bad row harms only itself.

    Records that are in `before`, the last answer's reports, are not decoded again: a change wakes a watcher with all.
    """
    if not isinstance(answer.rows, list):
        raise CatalogError("BAD_ANSWER", f"the answer for {zone} is not a list of services")
    reports: dict[str, tuple[tuple[bool, int], Reported]] = {}
    for row in answer.rows:
        service = mapping(row, "Service")
        server = service.get("ID")
        if not isinstance(server, str) or not server:
            continue
        report = _read_row(server, row, service, zone, before.get(server))
        # The same id on two nodes: a server that moved. Its old node's record turns critical; the newer one counts.
        rank = (report.state is not CatalogState.CRITICAL, _integer(service.get("ModifyIndex")))
        if server not in reports or rank > reports[server][0]:
            reports[server] = (rank, report)
    return {server: report for server, (_, report) in reports.items()}


def _read_row(server: str, row: object, service: Mapping[str, object], zone: str, before: Reported | None) -> Reported:
    record, state = read_record(server, row, service)
    if before is not None and before.record == record:
        return replace(before, state=state)
    try:
        endpoint = decode(record)
        if endpoint.zone != zone:
            raise DecodeError("zone", f"{endpoint.zone[:40]!r} is not {zone}, where it is registered")
    except DecodeError as error:
        return Reported(server, state, None, str(error), record)
    return Reported(server, state, endpoint, record=record)


def read_record(service_id: str, row: object, service: Mapping[str, object]) -> tuple[ServiceRecord, CatalogState]:
    """A row's record as it was written, and what the catalog says of it. Nothing in it is believed yet."""
    meta = {key: value for key, value in mapping(service, "Meta").items() if isinstance(value, str)}
    address = service.get("Address") or mapping(row, "Node").get("Address")
    host, port = address if isinstance(address, str) else "", _integer(service.get("Port"))
    record = ServiceRecord(service_id, host, port, (), meta)
    return record, CatalogState.LEAVING if record.leaving else _state_of_checks(row)


def mapping(value: object, key: str) -> Mapping[str, object]:
    """What `value` has under `key`, if that is a JSON object; else nothing."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, dict) else {}


def _state_of_checks(row: object) -> CatalogState:
    state = CatalogState.PASSING
    for check_id, status in _checks(row):
        if check_id == _NODE_MAINTENANCE or check_id.startswith(_SERVICE_MAINTENANCE):
            return CatalogState.MAINTENANCE
        if status == "critical":
            state = CatalogState.CRITICAL
    return state


def _checks(row: object) -> Iterator[tuple[str, object]]:
    checks = row.get("Checks") if isinstance(row, dict) else None
    for check in checks if isinstance(checks, list) else ():
        if isinstance(check, dict):
            yield str(check.get("CheckID", "")), check.get("Status")


def _integer(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
