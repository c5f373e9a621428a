"""The catalog in memory: what Consul promises discovery, without Consul, and with switches for its outages.

The registrar and the watcher over it are the ones that run over Consul; only the agent is a twin. One contract suite
runs against both (tests/contract/test_catalog.py). Everything belongs to one event loop.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from enum import Enum

from discovery.agent_api import Answer, TtlCheck
from discovery.catalog import CatalogState
from discovery.codec import SERVICE, ServiceRecord, encode
from discovery.consul_registrar import ConsulRegistrar, RegistrarTiming
from discovery.consul_watcher import ConsulWatcher
from discovery.endpoint import Endpoint
from discovery.errors import CatalogError
from discovery.memory_zone import MemoryZone
from discovery.zone_watch import WatcherTiming

# How long a call that hangs takes to fail beyond what it asked to wait; the HTTP client's is longer.
_HANG_S = 2.0


class Fault(Enum):
    """What is wrong with a zone's catalog, seen from everywhere."""

    NONE = "none"
    UNREACHABLE = "unreachable"
    DENIED = "403"
    SERVER_ERROR = "500"
    HANG = "hang"
    # As with a token that may read nothing: 200 and `[]`.
    EMPTY = "empty"
    LEADERLESS = "leaderless"


class MemoryCatalog:
    """All zones' catalogs. `clock` reads seconds; `rng` jitters retries."""

    def __init__(
        self,
        zones: Sequence[str] = ("zone-a",),
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._rng = rng or random.Random(0)
        self._zones = {name: MemoryZone(name, clock) for name in zones}
        self._faults = dict.fromkeys(zones, Fault.NONE)

    def registrar(self, zone: str, timing: RegistrarTiming | None = None) -> ConsulRegistrar:
        """A registrar at the agent of `zone`."""
        return ConsulRegistrar(self.agent(zone), rng=self._rng, clock=self._clock, timing=timing)

    def watcher(
        self, zone: str, zones: Sequence[str] | None = None, timing: WatcherTiming | None = None
    ) -> ConsulWatcher:
        """A watcher at the agent of `zone`; `zones` None follows `add_zone`."""
        return ConsulWatcher(self.agent(zone), zone, rng=self._rng, zones=zones, clock=self._clock, timing=timing)

    def agent(self, zone: str) -> "MemoryAgent":
        """The agent of `zone`."""
        return MemoryAgent(self, zone)

    def add_zone(self, zone: str) -> None:
        """A datacenter joins."""
        self._zones[zone] = MemoryZone(zone, self._clock)
        self._faults[zone] = Fault.NONE

    def put(self, endpoint: Endpoint, state: CatalogState = CatalogState.PASSING) -> None:
        """Write a record without a registrar, to stay until `remove`. MISSING is not a state that one can write."""
        if state is CatalogState.MISSING:
            raise ValueError("a record cannot be written as missing; remove it instead")
        record = encode(endpoint, leaving="test" if state is CatalogState.LEAVING else None)
        zone = self._zones[endpoint.zone]
        zone.register(record, None)
        zone.mark(record.service_id, passing=state is not CatalogState.CRITICAL, output="")
        zone.maintain(record.service_id, on=state is CatalogState.MAINTENANCE)

    def poison(self, zone: str, record: ServiceRecord) -> None:
        """Write a record as it is, whatever it says, passing."""
        self._zones[zone].register(record, None)
        self._zones[zone].mark(record.service_id, passing=True, output="")

    def remove(self, zone: str, server: str) -> None:
        """Remove a record without a word."""
        self._zones[zone].deregister(server)

    def maintain(self, zone: str, server: str, *, on: bool) -> None:
        """What `consul maint -enable -service=SERVER` does, and `-disable`."""
        self._zones[zone].maintain(server, on=on)

    def restart_empty(self, zone: str) -> None:
        """The zone's catalog comes back with nothing in it, its index low again."""
        self._zones[zone].restart_empty()

    def fault(self, zone: str, fault: Fault) -> None:
        """Switch a fault on, or off with NONE. Queries that wait notice at once."""
        self._faults[zone] = fault
        self._zones[zone].changed()

    def writes(self, zone: str) -> int:
        """Changes of the zone's state so far: what would be Raft writes."""
        return self._zones[zone].index - 1

    def fault_of(self, zone: str) -> Fault:
        """The fault that is switched on."""
        return self._faults.get(zone, Fault.SERVER_ERROR)

    def zone(self, zone: str) -> MemoryZone:
        """The zone's state. Raises CatalogError as Consul does for a datacenter that it does not know."""
        if zone not in self._zones:
            raise CatalogError("SERVER_ERROR", f"No path to datacenter {zone}", status=500)
        return self._zones[zone]

    @property
    def zones(self) -> tuple[str, ...]:
        """The zones' names."""
        return tuple(self._zones)


class MemoryAgent:
    """Implements AgentApi for one zone of a MemoryCatalog."""

    def __init__(self, catalog: MemoryCatalog, zone: str) -> None:
        self._catalog = catalog
        self._own = zone

    async def services(self, service: str, zone: str, index: int, wait_s: float) -> Answer:
        """See AgentApi."""
        await self._meet_fault(self._own, wait_s if index else 0.0)
        await self._meet_fault(zone, wait_s if index else 0.0)
        state = self._catalog.zone(zone)
        if index:
            fault = self._catalog.fault_of(zone)
            await state.wait(index, wait_s, until=lambda: self._catalog.fault_of(zone) is not fault)
            await self._meet_fault(zone, wait_s)
        fault = self._catalog.fault_of(zone)
        rows = [] if fault is Fault.EMPTY or service != SERVICE else state.rows()
        return Answer(state.index, rows, fault is not Fault.LEADERLESS, 0)

    async def zones(self) -> Sequence[str]:
        """See AgentApi."""
        await self._meet_fault(self._own, 0.0)
        return self._catalog.zones

    async def register(self, service: str, record: ServiceRecord, check: TtlCheck, *, replace_checks: bool) -> None:
        """See AgentApi."""
        state = await self._write()
        if replace_checks:
            state.maintain(record.service_id, on=False)
        state.register(record, check)

    async def deregister(self, service_id: str) -> None:
        """See AgentApi."""
        (await self._write()).deregister(service_id)

    async def mark(self, service_id: str, *, passing: bool, output: str) -> None:
        """See AgentApi."""
        state = await self._write()
        if not state.mark(service_id, passing=passing, output=output):
            raise CatalogError("SERVER_ERROR", f"no check for {service_id}", status=500)

    async def epoch(self, service_id: str) -> str | None:
        """See AgentApi."""
        return (await self._write()).epoch(service_id)

    async def in_maintenance(self, service_id: str) -> bool:
        """See AgentApi."""
        return (await self._write()).in_maintenance(service_id)

    async def _write(self) -> MemoryZone:
        await self._meet_fault(self._own, 0.0)
        return self._catalog.zone(self._own)

    async def _meet_fault(self, zone: str, wait_s: float) -> None:
        fault = self._catalog.fault_of(zone) if zone in self._catalog.zones else Fault.NONE
        if fault is Fault.HANG:
            until = self._catalog.zone(zone)
            await until.wait_for(lambda: self._catalog.fault_of(zone) is not Fault.HANG, wait_s + _HANG_S)
            fault = self._catalog.fault_of(zone)
            if fault is Fault.HANG:
                raise CatalogError("TIMEOUT", f"{zone} hangs")
        if fault is Fault.UNREACHABLE:
            raise CatalogError("UNREACHABLE", f"{zone} cannot be reached")
        if fault is Fault.DENIED:
            raise CatalogError("DENIED", f"{zone} answered 403", status=403)
        if fault is Fault.SERVER_ERROR:
            raise CatalogError("SERVER_ERROR", f"{zone} answered 500", status=500)
        # As a call over a network would: let others run.
        await asyncio.sleep(0)
