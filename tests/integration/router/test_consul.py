"""Routers and servers over real Consul, a datacenter a zone: outages, restarts, an operator's hand."""

import asyncio
import json
import random
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from discovery.catalog import CatalogState
from discovery.consul_agent import ConsulAgent, ready
from discovery.consul_client import ConsulClient
from discovery.consul_registrar import ConsulRegistrar, RegistrarTiming
from discovery.consul_watcher import ConsulWatcher
from router.server import RouterServer
from tests.fakes.fleet import MODEL
from tests.fakes.inference import channel_to, generation, unary
from tests.fakes.mesh import ZONES, Mesh, mesh
from tests.fakes.until import until
from tests.integration.discovery.kit import consul_mesh

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

# Longer than the servers' TTL of 10 s, so that every check has lapsed; and what the issue asks for.
OUTAGES_S = [12.0, pytest.param(60.0, marks=pytest.mark.chaos)]


class ConsulCatalog:
    """Real Consul as a `Catalog`."""

    def __init__(self, clients: Mapping[str, ConsulClient]) -> None:
        self._clients = clients

    @property
    def zones(self) -> Sequence[str]:
        return tuple(self._clients)

    def registrar(self, zone: str, timing: RegistrarTiming | None = None) -> ConsulRegistrar:
        return ConsulRegistrar(self._clients[zone], rng=random.Random(zone), timing=timing)

    def watcher(self, zone: str) -> ConsulWatcher:
        return ConsulWatcher(self._clients[zone], zone, rng=random.Random(zone))


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[dict[str, ConsulAgent]]:
    with consul_mesh(ZONES, tmp_path) as running:
        yield running


@asynccontextmanager
async def mesh_over(agents: Mapping[str, ConsulAgent], servers_per_zone: int) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as held:
        clients = {
            zone: await held.enter_async_context(ConsulClient(agent.config.http_address, environ={}))
            for zone, agent in agents.items()
        }
        yield await held.enter_async_context(mesh(servers_per_zone, catalog=ConsulCatalog(clients)))


def consul(agent: ConsulAgent, *arguments: str) -> str:
    """What an operator types."""
    command = [str(agent.config.binary), *arguments, f"-http-addr={agent.config.http_address}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout


def holders(router: RouterServer) -> set[str]:
    return {server for server, _ in router.fleet.snapshot.holders[MODEL].by_key}


def passing(router: RouterServer) -> int:
    members = router.fleet.snapshot.members.values()
    return sum(member.catalog_state is CatalogState.PASSING for member in members)


async def test_ops_see_every_server_from_either_zone(agents: dict[str, ConsulAgent]) -> None:
    async with mesh_over(agents, 2):
        for agent in agents.values():
            for zone in ZONES:
                url = f"http://{agent.config.http_address}/v1/catalog/service/stoker-model-server?dc={zone}"
                body = await asyncio.to_thread(lambda url=url: urllib.request.urlopen(url, timeout=5).read())  # type: ignore[misc]
                rows = json.loads(body)
                assert sorted(row["ServiceID"] for row in rows) == [f"{zone}-0", f"{zone}-1"]
                for row in rows:
                    assert row["ServiceMeta"]["model-0"].startswith(f"{MODEL} hot")
                    assert row["ServiceMeta"]["zone"] == zone
                    assert row["ServiceMeta"]["load-gpu"].isdigit()
                    assert row["ServiceMeta"]["load-running"].isdigit()


async def test_maintenance_takes_a_server_out_of_the_picks_within_a_second(agents: dict[str, ConsulAgent]) -> None:
    async with mesh_over(agents, 1) as up:
        router = up.routers["zone-a"]
        await asyncio.to_thread(consul, agents["zone-a"], "maint", "-enable", "-service=zone-a-0")
        assert await until(lambda: holders(router) == {"zone-b-0"}) < 1.0
        async with channel_to(up.address) as channel:
            assert (await unary(channel, generation(max_tokens=1))).started.server == "zone-b-0"
        await asyncio.to_thread(consul, agents["zone-a"], "maint", "-disable", "-service=zone-a-0")
        assert await until(lambda: holders(router) == {"zone-a-0", "zone-b-0"}) < 1.0


async def test_a_whole_nodes_maintenance_moves_its_zone_to_the_other(agents: dict[str, ConsulAgent]) -> None:
    async with mesh_over(agents, 2) as up:
        await asyncio.to_thread(consul, agents["zone-a"], "maint", "-enable")
        for router in up.routers.values():
            await until(lambda router=router: holders(router) == {"zone-b-0", "zone-b-1"})  # type: ignore[misc]


@pytest.mark.parametrize("outage_s", OUTAGES_S)
async def test_no_request_fails_while_consul_is_away_and_all_is_registered_again_after(
    agents: dict[str, ConsulAgent], outage_s: float
) -> None:
    """Both datacenters at once, under load; the agents come back with nothing in them."""
    async with mesh_over(agents, 2) as up:
        answered = 0
        done = asyncio.Event()

        async def keep_asking(zone: str, i: int) -> None:
            nonlocal answered
            async with channel_to(up.address_of(zone)) as channel:
                while not done.is_set():
                    await unary(channel, generation(f"{zone} {i} {answered}", max_tokens=20), timeout=10.0)
                    answered += 1

        async with asyncio.TaskGroup() as load:
            for i in range(4):
                for zone in ZONES:
                    load.create_task(keep_asking(zone, i))
            await until(lambda: answered > 100)
            for agent in agents.values():
                agent.kill()
            await until(lambda: all(router.fleet.view.zones["zone-a"].error for router in up.routers.values()))
            # An outage lasts: this is its length, not a wait for anything.
            await asyncio.sleep(outage_s)
            # Also now that every check has lapsed; how many a busy machine answered until then says nothing.
            lapsed = answered
            await until(lambda: answered > lapsed + 100, within_s=30.0)
            for router in up.routers.values():
                assert len(holders(router)) == 4

            for agent in agents.values():
                agent.start()
            await ready(tuple(agents.values()))
            for router in up.routers.values():
                await until(lambda router=router: passing(router) == 4, within_s=30.0)  # type: ignore[misc]
                await until(lambda router=router: not router.fleet.view.zones["zone-b"].error, within_s=30.0)  # type: ignore[misc]
            done.set()
        await until(up.idle)
