"""Follows Consul's catalog in every zone and publishes what is known, failing static."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from types import MappingProxyType

from discovery.agent_api import AgentApi
from discovery.catalog import CatalogView, ZoneView
from discovery.errors import CatalogError
from discovery.zone_watch import WatcherTiming, ZoneWatch
from stoker_common.backoff import Backoff

log = logging.getLogger(__name__)

# A mesh has a handful of zones; a list longer than this is a fault, and each zone holds a connection.
_MAX_ZONES = 64


class ConsulWatcher:
    """Implements Watcher over an agent. All calls belong to one event loop; `run` once at a time.

    `zone` is the agent's own datacenter; `zones` a fixed list, None to follow the agent's. Each zone is watched by a
    task of its own, so that one that hangs holds up no other. A zone once seen is watched for good.
    """

    def __init__(
        self,
        agent: AgentApi,
        zone: str,
        *,
        rng: random.Random,
        zones: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        timing: WatcherTiming | None = None,
    ) -> None:
        self._agent = agent
        self._rng = rng
        self._clock = clock
        self._timing = timing or WatcherTiming()
        self._follow_list = zones is None
        self._watches: dict[str, ZoneWatch] = {}
        self._publish: Callable[[CatalogView], None] | None = None
        for name in dict.fromkeys((zone, *(zones or ()))):
            self._add(name)

    @property
    def watches(self) -> tuple[ZoneWatch, ...]:
        """Each zone's watch, for its counters."""
        return tuple(self._watches.values())

    async def run(self, publish: Callable[[CatalogView], None]) -> None:
        """See Watcher."""
        self._publish = publish
        async with asyncio.TaskGroup() as tasks:
            for watch in self._watches.values():
                tasks.create_task(watch.run(), name=f"watch {watch.view.zone}")
            if self._follow_list:
                await self._follow_zones(tasks)

    def forget(self, zone: str, lives: Collection[tuple[str, str]]) -> None:
        """See Watcher."""
        if zone in self._watches:
            self._watches[zone].forget(lives)

    async def _follow_zones(self, tasks: asyncio.TaskGroup) -> None:
        backoff = Backoff(self._rng, self._timing.retry_first_s, self._timing.retry_most_s)
        failing = False
        while True:
            try:
                listed = await self._agent.zones()
            except CatalogError as error:
                if not failing:
                    log.warning("cannot list the datacenters, trying on: %s", error, extra={"reason": error.reason})
                failing = True
                await asyncio.sleep(backoff.delay_s())
                continue
            failing = False
            backoff.reset()
            for name in listed:
                # One that is no longer listed stays watched: a zone cut off is not a zone gone.
                if name not in self._watches and len(self._watches) < _MAX_ZONES:
                    log.info("watching another zone", extra={"zone": name})
                    tasks.create_task(self._add(name).run(), name=f"watch {name}")
            await asyncio.sleep(self._timing.zones_every_s)

    def _add(self, zone: str) -> ZoneWatch:
        backoff = Backoff(self._rng, self._timing.retry_first_s, self._timing.retry_most_s)
        watch = ZoneWatch(self._agent, zone, self._changed, backoff, self._clock, self._timing)
        self._watches[zone] = watch
        return watch

    def _changed(self, _: ZoneView) -> None:
        if self._publish is not None:
            views = {name: watch.view for name, watch in self._watches.items()}
            self._publish(CatalogView(MappingProxyType(views)))
