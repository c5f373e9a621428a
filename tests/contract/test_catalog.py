"""What registrar and watcher promise each other, over the in-memory catalog and over real Consul."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Protocol

import pytest

from discovery.agent_api import AgentApi, TtlCheck
from discovery.catalog import CatalogEntry, CatalogState
from discovery.coarse import coarse_endpoint
from discovery.codec import SERVICE, encode
from discovery.consul_agent import ConsulAgent, ready
from discovery.consul_client import ConsulClient
from discovery.consul_registrar import ConsulRegistrar, RegistrarTiming
from discovery.consul_watcher import ConsulWatcher
from discovery.endpoint import Load, ModelState, Residency
from discovery.memory import MemoryCatalog
from discovery.zone_watch import WatcherTiming
from tests.integration.discovery.kit import Seen, consul_mesh, make_endpoint, running, until

pytestmark = pytest.mark.contract

A, B = "zone-a", "zone-b"
ZONES = (A, B)
# As in production, but quicker where a test would wait for it.
QUICK = RegistrarTiming(pass_every_s=0.3, load_every_s=0.5, settle_s=0.3, leave_within_s=1.5)
CHECK = TtlCheck(10.0, 300.0)
PASSING, CRITICAL, MISSING = CatalogState.PASSING, CatalogState.CRITICAL, CatalogState.MISSING


class Catalog(Protocol):
    """A catalog of two zones, and what operators and accidents do to it."""

    def agent(self, zone: str) -> AgentApi: ...
    async def maintain(self, zone: str, server: str, *, on: bool) -> None: ...
    async def restart_empty(self, zone: str) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._catalog = MemoryCatalog(ZONES)

    def agent(self, zone: str) -> AgentApi:
        return self._catalog.agent(zone)

    async def maintain(self, zone: str, server: str, *, on: bool) -> None:
        self._catalog.maintain(zone, server, on=on)

    async def restart_empty(self, zone: str) -> None:
        self._catalog.restart_empty(zone)


class RealConsul:
    def __init__(self, agents: dict[str, ConsulAgent], clients: dict[str, ConsulClient]) -> None:
        self._agents = agents
        self._clients = clients

    def agent(self, zone: str) -> AgentApi:
        return self._clients[zone]

    async def maintain(self, zone: str, server: str, *, on: bool) -> None:
        config = self._agents[zone].config
        words = ["maint", f"-http-addr={config.http_address}", "-enable" if on else "-disable", f"-service={server}"]
        process = await asyncio.create_subprocess_exec(
            str(config.binary), *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        _, said = await process.communicate()
        assert process.returncode == 0, said

    async def restart_empty(self, zone: str) -> None:
        agent = self._agents[zone]
        await asyncio.to_thread(agent.kill)
        agent.start()
        await ready([agent])


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ConsulAgent]]:
    with consul_mesh(ZONES, tmp_path_factory.mktemp("consul")) as agents:
        yield agents


@pytest.fixture(params=["memory", "consul"])
def agents(request: pytest.FixtureRequest) -> dict[str, ConsulAgent]:
    """Consul's agents by zone; none for the catalog in memory."""
    return {} if request.param == "memory" else request.getfixturevalue("mesh")


@pytest.fixture
async def catalog(agents: dict[str, ConsulAgent]) -> AsyncIterator[Catalog]:
    if not agents:
        yield InMemory()
        return
    clients = {zone: ConsulClient(agent.config.http_address, environ={}) for zone, agent in agents.items()}
    yield RealConsul(agents, clients)
    for client in clients.values():
        found = await client.services(SERVICE, next(zone for zone in clients if clients[zone] is client), 0, 0)
        assert isinstance(found.rows, list)
        for row in found.rows:
            await client.deregister(row["Service"]["ID"])
        await client.close()


def new_registrar(catalog: Catalog, zone: str = A, timing: RegistrarTiming = QUICK) -> ConsulRegistrar:
    return ConsulRegistrar(catalog.agent(zone), rng=random.Random(1), timing=timing)


def new_watcher(catalog: Catalog, zone: str = A, wait_s: float = 10.0) -> ConsulWatcher:
    return ConsulWatcher(catalog.agent(zone), zone, rng=random.Random(2), timing=WatcherTiming(wait_s=wait_s))


async def test_a_registered_server_is_seen_in_both_zones(catalog: Catalog) -> None:
    endpoint = make_endpoint(load=Load(running=4, utilization=0.44, kv_usage=0.21, prefill_tokens_per_second=1234.5))
    registrar, here, there = new_registrar(catalog), Seen(), Seen()
    registrar.announce(endpoint)
    async with running(
        registrar.run(), new_watcher(catalog).run(here.publish), new_watcher(catalog, B).run(there.publish)
    ):
        for seen in (here, there):
            await seen.until_state(PASSING)
            assert seen.entry() == CatalogEntry(coarse_endpoint(endpoint), PASSING)


async def test_an_unchanged_view_is_confirmed_again(catalog: Catalog) -> None:
    seen = Seen()
    async with running(new_watcher(catalog, wait_s=0.2).run(seen.publish)):
        await seen.until(lambda: seen.zone().confirmed_at_s is not None)
        first_s = seen.zone().confirmed_at_s or 0.0
        await seen.until(lambda: (seen.zone().confirmed_at_s or 0.0) > first_s + 0.3)


async def test_a_model_is_written_at_once_and_load_later(catalog: Catalog) -> None:
    registrar, seen = new_registrar(catalog, timing=replace(QUICK, load_every_s=1.0)), Seen()
    endpoint = make_endpoint()
    registrar.announce(endpoint)
    async with running(registrar.run(), new_watcher(catalog).run(seen.publish)):
        await seen.until_state(PASSING)
        busy = replace(endpoint, load=Load(utilization=0.8))
        registrar.announce(busy)
        took_s = await seen.until(
            lambda: (entry := seen.entry()) is not None and entry.endpoint.load.utilization == 0.8
        )
        assert took_s > 0.5
        asleep = replace(busy, models=(*busy.models, ModelState("org/other@2", Residency.ASLEEP, 4096, 470.0, "base")))
        registrar.announce(asleep)
        assert await seen.until(lambda: (entry := seen.entry()) is not None and len(entry.endpoint.models) == 2) < 0.5
        assert seen.entry() == CatalogEntry(coarse_endpoint(asleep), PASSING)


async def test_an_unhealthy_server_is_critical_at_once_and_writes_nothing(catalog: Catalog) -> None:
    registrar, seen = new_registrar(catalog), Seen()
    registrar.announce(make_endpoint())
    async with running(registrar.run(), new_watcher(catalog).run(seen.publish)):
        await seen.until_state(PASSING)
        writes = registrar.writes
        registrar.set_health(passing=False, note="engine stuck")
        assert await seen.until_state(CRITICAL) < 0.5
        registrar.announce(replace(make_endpoint(), models=()))
        marks = registrar.marks
        await until(lambda: registrar.marks >= marks + 2)
        assert registrar.writes == writes
        registrar.set_health(passing=True, note="")
        await seen.until(lambda: seen.entry() == CatalogEntry(replace(make_endpoint(), models=()), PASSING))


async def test_a_server_that_falls_silent_turns_critical(catalog: Catalog) -> None:
    registrar, seen = new_registrar(catalog, timing=replace(QUICK, ttl_s=1.0)), Seen()
    registrar.announce(make_endpoint())
    async with running(new_watcher(catalog).run(seen.publish)):
        async with running(registrar.run()):
            await seen.until_state(PASSING)
        assert await seen.until_state(CRITICAL) > 0.4


async def test_leaving_is_seen_and_then_the_entry_goes(catalog: Catalog) -> None:
    registrar, seen = new_registrar(catalog), Seen()
    registrar.announce(make_endpoint())
    async with running(registrar.run(), new_watcher(catalog, B).run(seen.publish)):
        await seen.until_state(PASSING)
        async with asyncio.TaskGroup() as group:
            group.create_task(registrar.leave("rolled out"))
            await seen.until_state(CatalogState.LEAVING)
            registrar.announce(make_endpoint(load=Load(running=9)))
        await seen.until_state(None)
        assert await catalog.agent(A).epoch("server-1") is None


async def test_a_draining_server_stays_marked_as_leaving_until_it_has_left(catalog: Catalog) -> None:
    registrar, seen = new_registrar(catalog), Seen()
    registrar.announce(make_endpoint())
    async with running(registrar.run(), new_watcher(catalog).run(seen.publish)):
        await seen.until_state(PASSING)
        registrar.leaving("rolled out")
        await seen.until_state(CatalogState.LEAVING)
        registrar.announce(make_endpoint(load=Load(utilization=0.9)))
        await seen.until(lambda: (entry := seen.entry()) is not None and entry.endpoint.load.utilization > 0.5)
        assert seen.state() is CatalogState.LEAVING
        await registrar.leave("rolled out")
        await seen.until_state(None)


async def test_an_unhealthy_server_can_say_that_it_leaves(catalog: Catalog) -> None:
    registrar, seen = new_registrar(catalog), Seen()
    registrar.announce(make_endpoint())
    async with running(registrar.run(), new_watcher(catalog).run(seen.publish)):
        await seen.until_state(PASSING)
        registrar.set_health(passing=False, note="engine dead")
        await seen.until_state(CRITICAL)
        async with asyncio.TaskGroup() as group:
            group.create_task(registrar.leave("engine dead"))
            await seen.until_state(CatalogState.LEAVING)
        await seen.until_state(None)


async def test_an_old_life_that_leaves_late_spares_the_new_one(catalog: Catalog) -> None:
    old, new, seen = new_registrar(catalog), new_registrar(catalog), Seen()
    old.announce(make_endpoint(epoch="old"))
    new.announce(make_endpoint(epoch="new"))
    async with running(new_watcher(catalog).run(seen.publish)):
        async with running(old.run()):
            await seen.until_state(PASSING)
        async with running(new.run()):
            await seen.until(lambda: (entry := seen.entry()) is not None and entry.endpoint.epoch == "new")
            await old.leave("late")
            assert await catalog.agent(A).epoch("server-1") == "new"
            assert seen.state() is PASSING


async def test_a_new_life_replaces_a_dead_one_and_its_critical_check(catalog: Catalog) -> None:
    old, new, seen = new_registrar(catalog), new_registrar(catalog), Seen()
    old.announce(make_endpoint(epoch="old"))
    old.set_health(passing=True, note="")
    async with running(new_watcher(catalog).run(seen.publish)):
        async with running(old.run()):
            await seen.until_state(PASSING)
            old.set_health(passing=False, note="dying")
            await seen.until_state(CRITICAL)
        new.announce(make_endpoint(epoch="new"))
        async with running(new.run()):
            await seen.until_state(PASSING)
            assert (entry := seen.entry()) is not None and entry.endpoint.epoch == "new"


async def test_a_lost_registration_comes_back_by_itself(catalog: Catalog) -> None:
    registrar, seen = new_registrar(catalog), Seen()
    registrar.announce(make_endpoint())
    async with running(registrar.run(), new_watcher(catalog).run(seen.publish)):
        await seen.until_state(PASSING)
        await catalog.agent(A).deregister("server-1")
        await seen.until_state(MISSING)
        await seen.until_state(PASSING)


async def test_an_unhealthy_server_comes_back_only_when_it_is_well(catalog: Catalog) -> None:
    registrar, seen = new_registrar(catalog), Seen()
    registrar.announce(make_endpoint())
    async with running(registrar.run(), new_watcher(catalog).run(seen.publish)):
        await seen.until_state(PASSING)
        registrar.set_health(passing=False, note="stuck")
        await seen.until_state(CRITICAL)
        await catalog.agent(A).deregister("server-1")
        await seen.until_state(MISSING)
        marks = registrar.marks
        await until(lambda: registrar.marks >= marks + 2)
        assert await catalog.agent(A).epoch("server-1") is None
        registrar.set_health(passing=True, note="")
        await seen.until_state(PASSING)


async def test_an_agent_back_empty_gets_everything_again(catalog: Catalog) -> None:
    registrars = [new_registrar(catalog) for _ in range(3)]
    names = [f"server-{place}" for place in range(3)]
    seen = Seen()
    for name, registrar in zip(names, registrars, strict=True):
        registrar.announce(make_endpoint(name))
    watcher = new_watcher(catalog)
    async with running(*(registrar.run() for registrar in registrars), watcher.run(seen.publish)):
        await seen.until(lambda: all(seen.state(name) is PASSING for name in names))
        writes = sum(registrar.writes for registrar in registrars)
        known = len(seen.history)
        await catalog.restart_empty(A)
        await until(lambda: sum(registrar.writes for registrar in registrars) >= writes + 3)
        await seen.until(lambda: not seen.zone().error and all(seen.state(name) is PASSING for name in names))
        assert seen.fewest(since=known) == 3


async def test_a_silent_absence_is_kept_until_it_is_forgotten(catalog: Catalog) -> None:
    registrar, seen, watcher = new_registrar(catalog), Seen(), new_watcher(catalog)
    registrar.announce(make_endpoint())
    async with running(watcher.run(seen.publish)):
        async with running(registrar.run()):
            await seen.until_state(PASSING)
            watcher.forget(A, [("server-1", "epoch-1")])
            assert seen.state() is PASSING
        await catalog.agent(A).deregister("server-1")
        await seen.until_state(MISSING)
        watcher.forget(A, [("server-1", "another-epoch")])
        watcher.forget(A, [("server-2", "epoch-1")])
        watcher.forget("nowhere", [("server-1", "epoch-1")])
        assert seen.state() is MISSING
        watcher.forget(A, [("server-1", "epoch-1")])
        assert seen.state() is None


async def test_maintenance_is_seen_and_outlasts_writes_and_a_new_life(catalog: Catalog) -> None:
    registrar, next_life, seen = new_registrar(catalog), new_registrar(catalog), Seen()
    registrar.announce(make_endpoint())
    async with running(new_watcher(catalog).run(seen.publish)):
        async with running(registrar.run()):
            await seen.until_state(PASSING)
            await catalog.maintain(A, "server-1", on=True)
            await seen.until_state(CatalogState.MAINTENANCE)
            registrar.announce(replace(make_endpoint(), models=()))
            await seen.until(lambda: (entry := seen.entry()) is not None and entry.endpoint.models == ())
            assert seen.state() is CatalogState.MAINTENANCE
        next_life.announce(make_endpoint(epoch="epoch-2"))
        async with running(next_life.run()):
            await seen.until(lambda: (entry := seen.entry()) is not None and entry.endpoint.epoch == "epoch-2")
            assert seen.state() is CatalogState.MAINTENANCE
            await catalog.maintain(A, "server-1", on=False)
            await seen.until_state(PASSING)


POISON = [
    {"load-gpu": "NaN"},
    {"load-gpu": "-10"},
    {"load-gpu": "1e9"},
    {"load-running": "-1"},
    {"load-running": "9" * 400},
    {"load-itl-ms": "Infinity"},
    {"max-streams": "sixteen"},
    {"format": "99"},
    {"zone": "zone-elsewhere"},
    {"epoch": ""},
    {"model-0": "x"},
    {"model-0": "x hot 2048; x hot 2048"},
    {"model-0": "x molten 2048"},
    {"model-7": "y hot 1"},
    {"engine": "%FF%FE"},
]


@pytest.mark.parametrize("poison", POISON, ids=lambda poison: next(iter(poison)))
async def test_poison_changes_no_record(
    catalog: Catalog, poison: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    good = encode(make_endpoint())
    bad = replace(good, meta={**good.meta, **poison})
    stranger = replace(bad, service_id="stranger", meta={**bad.meta, "zone": "x", "format": "99"})
    agent, seen, watcher = catalog.agent(A), Seen(), new_watcher(catalog, wait_s=0.2)
    caplog.set_level(logging.WARNING)
    async with running(watcher.run(seen.publish)):
        await agent.register(SERVICE, good, CHECK, replace_checks=True)
        await seen.until_state(PASSING)
        before = seen.entry()
        for record in (bad, stranger):
            await agent.register(SERVICE, record, CHECK, replace_checks=True)
        await seen.until(lambda: watcher.watches[0].undecodable == 2)
        count = len(seen.history)
        await seen.until(lambda: len(seen.history) >= count + 2)
        assert seen.entry() == before
        assert seen.state("stranger") is None
        # Its state is still the catalog's to say.
        await agent.mark("server-1", passing=False, output="")
        await seen.until_state(CRITICAL)
    assert sum("cannot be read" in record.message for record in caplog.records) == 2
    assert watcher.watches[0].undecodable == 2
