"""One zone of the catalog in memory: records, TTL checks, maintenance mode, an index that moves with every change."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from discovery.agent_api import TtlCheck
from discovery.codec import SERVICE, ServiceRecord


@dataclass(slots=True)
class _Row:
    record: ServiceRecord
    check: TtlCheck | None
    expires_at_s: float
    modify_index: int
    passing: bool = True
    critical_since_s: float = 0.0
    output: str = ""
    maintenance: bool = False


class MemoryZone:
    """A zone's state. Checks expire by the clock whenever the zone is looked at. Belongs to one event loop."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self._rows: dict[str, _Row] = {}
        self._change = asyncio.Event()
        self.index = 1

    def register(self, record: ServiceRecord, check: TtlCheck | None) -> None:
        """Write a record. A check that is there keeps its status and its TTL starts anew; a new one passes."""
        self._expire()
        now_s = self._clock()
        row = self._rows.get(record.service_id)
        expires_at_s = now_s + check.ttl_s if check else math.inf
        if row is None:
            row = _Row(record, check, expires_at_s, self.index)
            self._rows[record.service_id] = row
        row.record, row.check, row.expires_at_s = record, check, expires_at_s
        self._bump(row)

    def deregister(self, server: str) -> None:
        """Remove a record, if there is one."""
        self._expire()
        if self._rows.pop(server, None) is not None:
            self._bump(None)

    def mark(self, server: str, *, passing: bool, output: str) -> bool:
        """Set a check's status and start its TTL anew; False if there is no such check."""
        self._expire()
        row = self._rows.get(server)
        if row is None:
            return False
        row.output = output
        row.expires_at_s = self._clock() + row.check.ttl_s if row.check else math.inf
        self._set_status(row, passing=passing)
        return True

    def maintain(self, server: str, *, on: bool) -> None:
        """Maintenance mode of a record, if there is one."""
        row = self._rows.get(server)
        if row is not None and row.maintenance is not on:
            row.maintenance = on
            self._bump(row)

    def restart_empty(self) -> None:
        """Lose everything, the index included."""
        self._rows.clear()
        self.index = 1
        self.changed()

    def epoch(self, server: str) -> str | None:
        """The epoch in a record's Meta; None without a record."""
        self._expire()
        row = self._rows.get(server)
        return None if row is None else row.record.meta.get("epoch", "")

    def in_maintenance(self, server: str) -> bool:
        """Whether a record is in maintenance mode."""
        row = self._rows.get(server)
        return row is not None and row.maintenance

    def rows(self) -> list[object]:
        """All records as Consul's health endpoint gives them."""
        self._expire()
        return [_as_json(self._name, row) for row in self._rows.values()]

    async def wait(self, index: int, wait_s: float, until: Callable[[], bool]) -> None:
        """Wait for a change after `index`, for `until`, or for `wait_s`. An index ahead of the zone's waits in full."""
        await self.wait_for(lambda: self.index > index or until(), wait_s)

    async def wait_for(self, done: Callable[[], bool], wait_s: float) -> None:
        """Wait until `done`, asked after every change and expiry, or for `wait_s`."""
        ends_at_s = self._clock() + wait_s
        while True:
            self._expire()
            if done() or self._clock() >= ends_at_s:
                return
            next_s = min((row.expires_at_s for row in self._rows.values() if row.passing), default=math.inf)
            try:
                async with asyncio.timeout(max(0.001, min(next_s, ends_at_s) - self._clock())):
                    await self._change.wait()
            except TimeoutError:
                continue

    def changed(self) -> None:
        """Wake all who wait."""
        change, self._change = self._change, asyncio.Event()
        change.set()

    def _expire(self) -> None:
        now_s = self._clock()
        for server, row in list(self._rows.items()):
            if row.check is None:
                continue
            if row.passing and now_s >= row.expires_at_s:
                row.output = "TTL expired"
                self._set_status(row, passing=False)
            if not row.passing and now_s >= row.critical_since_s + row.check.deregister_after_s:
                del self._rows[server]
                self._bump(None)

    def _set_status(self, row: _Row, *, passing: bool) -> None:
        if row.passing is not passing:
            row.passing, row.critical_since_s = passing, self._clock()
            self._bump(row)

    def _bump(self, row: _Row | None) -> None:
        self.index += 1
        if row is not None:
            row.modify_index = self.index
        self.changed()


def _as_json(zone: str, row: _Row) -> dict[str, object]:
    server = row.record.service_id
    checks = [
        {"CheckID": "serfHealth", "Status": "passing", "Output": ""},
        {"CheckID": f"service:{server}", "Status": "passing" if row.passing else "critical", "Output": row.output},
    ]
    if row.maintenance:
        checks.append({"CheckID": f"_service_maintenance:{server}", "Status": "critical", "Output": ""})
    return {
        "Node": {"Node": f"memory-{zone}", "Address": "127.0.0.1", "Datacenter": zone},
        "Service": {
            "ID": server,
            "Service": SERVICE,
            "Tags": list(row.record.tags),
            "Address": row.record.address,
            "Port": row.record.port,
            "Meta": dict(row.record.meta),
            "ModifyIndex": row.modify_index,
        },
        "Checks": checks,
    }
