"""What discovery's tests share: endpoints, running tasks, waiting for a view, Consul processes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from discovery.catalog import CatalogEntry, CatalogState, CatalogView, ZoneView
from discovery.consul_agent import ConsulAgent, find_consul, plan_agents, ready, stop_all
from discovery.endpoint import Endpoint, Load, ModelState, Residency

IDLE = Load()
ROOT = Path(__file__).resolve().parents[3]


def make_endpoint(
    server: str = "server-1", zone: str = "zone-a", epoch: str = "epoch-1", load: Load = IDLE
) -> Endpoint:
    """A server with one hot model."""
    model = ModelState("SmolLM2-135M-Instruct", Residency.HOT, 2048)
    return Endpoint(server, "127.0.0.1:50051", zone, epoch, "sim", (model,), max_streams=16, kv_tokens=4096, load=load)


class Seen:
    """The views that a watcher published, the latest at hand."""

    def __init__(self) -> None:
        self.view = CatalogView()
        self.history: list[CatalogView] = []
        self._news = asyncio.Event()

    def publish(self, view: CatalogView) -> None:
        self.view = view
        self.history.append(view)
        self._news.set()

    def zone(self, zone: str = "zone-a") -> ZoneView:
        return self.view.zones.get(zone, ZoneView(zone))

    def fewest(self, since: int, zone: str = "zone-a") -> int:
        """The smallest set of the zone in any view from the `since`th on."""
        return min(len(view.zones[zone].entries) for view in self.history[since:])

    def entry(self, server: str = "server-1", zone: str = "zone-a") -> CatalogEntry | None:
        return self.zone(zone).entries.get(server)

    def state(self, server: str = "server-1", zone: str = "zone-a") -> CatalogState | None:
        entry = self.entry(server, zone)
        return entry.state if entry else None

    async def until(self, done: Callable[[], bool], within_s: float = 10.0) -> float:
        """Wait for a view for which `done`; returns how long it took, in seconds."""
        started_at_s = time.monotonic()
        try:
            async with asyncio.timeout(within_s):
                while not done():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not seen within {within_s} s; last view: {self.view}") from None
        return time.monotonic() - started_at_s

    async def until_state(
        self, state: CatalogState | None, server: str = "server-1", zone: str = "zone-a", within_s: float = 10.0
    ) -> float:
        return await self.until(lambda: self.state(server, zone) is state, within_s)

    async def until_epoch(
        self, epoch: str, server: str = "server-1", zone: str = "zone-a", within_s: float = 10.0
    ) -> float:
        return await self.until(
            lambda: (entry := self.entry(server, zone)) is not None and entry.endpoint.epoch == epoch, within_s
        )


async def until(done: Callable[[], bool], within_s: float = 10.0) -> None:
    """Poll a condition that nobody announces."""
    async with asyncio.timeout(within_s):
        while not done():  # noqa: ASYNC110 - a counter sets no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(*coroutines: Coroutine[object, object, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run beside the block and cancel at its end; what one of them raises fails the test."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()


@contextmanager
def consul_mesh(zones: tuple[str, ...], folder: Path) -> Iterator[dict[str, ConsulAgent]]:
    """A Consul agent a zone, WAN-joined, state in memory; by zone."""
    plans = plan_agents(find_consul(ROOT), zones)
    agents = [ConsulAgent(plan, folder / f"{plan.node}.log") for plan in plans]
    try:
        for agent in agents:
            agent.start()
        asyncio.run(ready(agents))
        yield {agent.config.zone: agent for agent in agents}
    finally:
        stop_all(agents)
