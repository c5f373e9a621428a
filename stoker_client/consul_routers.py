"""Routers found in Consul: those of the agent's own zone first, other zones' after them; within a zone in this client's
own order."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from discovery.agent_api import AgentApi
from discovery.consul_client import ConsulClient
from discovery.errors import CatalogError
from discovery.router_record import SERVICE, RouterRecord, read_routers
from stoker_client.sources import salt, spread

# A call that breaks off asks again, and a hundred that break off together ask once.
LEAST_AGE_S = 0.5
# A datacenter that is cut off does not answer for half a minute; what is known of it stays.
ONE_ZONE_S = 2.0


class ConsulRouters:
    """Implements Source over a Consul agent. Read before the first call and again once a router failed.

    What cannot be believed takes nothing from what is known: a zone that does not answer, or has no routers any more.
    """

    def __init__(
        self,
        address: str,
        rng: random.Random,
        agent: AgentApi | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._salt = salt(rng)
        self._name = f"consul://{address}"
        self._client = ConsulClient(address) if agent is None else None
        self._agent: AgentApi = agent or self._client  # type: ignore[assignment]  # one of the two is there
        self._clock = clock
        self._zones: dict[str, Sequence[RouterRecord]] = {}
        self._read_s: float | None = None
        self._doubted = True
        self._reading = asyncio.Lock()

    def __str__(self) -> str:
        return self._name

    async def addresses(self, within_s: float) -> Sequence[str]:
        """See Source."""
        async with self._reading:
            if self._doubted and (self._read_s is None or self._clock() - self._read_s >= LEAST_AGE_S):
                self._doubted = False
                await self._read(min(within_s, ONE_ZONE_S))
                self._read_s = self._clock()
        # Consul calls a router critical whose agent lost touch with it: it may answer all the same.
        return [
            address
            for passing in (True, False)
            for routers in self._zones.values()
            for address in spread((each.address for each in routers if each.passing is passing), self._salt)
        ]

    def doubt(self, address: str) -> None:
        """See Source."""
        self._doubted = True

    async def close(self) -> None:
        """See Source."""
        if self._client is not None:
            await self._client.close()

    async def _read(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                # Nearest first, the agent's own before all (Consul's documentation of /v1/catalog/datacenters).
                zones = await self._agent.zones()
        except (CatalogError, TimeoutError):
            zones = tuple(self._zones)
            self._doubted = True
        found = await asyncio.gather(*(self._zone(zone, within_s) for zone in zones))
        before = self._zones
        self._zones = {
            zone: before.get(zone, ()) if records is None else records
            for zone, records in zip(zones, found, strict=True)
        }
        # A zone that is no longer listed stays: cut off is not gone.
        self._zones |= {zone: records for zone, records in before.items() if zone not in self._zones}

    async def _zone(self, zone: str, within_s: float) -> Sequence[RouterRecord] | None:
        """The zone's routers; None if it cannot say."""
        try:
            async with asyncio.timeout(within_s):
                return read_routers(await self._agent.services(SERVICE, zone, 0, 0.0))
        except (CatalogError, TimeoutError):
            self._doubted = True
            return None
