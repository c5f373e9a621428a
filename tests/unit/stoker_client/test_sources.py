"""Where routers' addresses come from."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from discovery.agent_api import AgentApi, Answer, TtlCheck
from discovery.codec import ServiceRecord
from discovery.endpoint import Endpoint
from discovery.errors import CatalogError
from discovery.router_record import SERVICE, encode_router
from stoker_client.consul_routers import ConsulRouters
from stoker_client.sources import DNS_AGE_S, Named, source

RNG = random.Random(1)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Names:
    """A resolver."""

    def __init__(self, *found: str) -> None:
        self.found, self.asked, self.away = list(found), 0, False

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        if self.away:
            raise OSError("no resolver")
        return [f"{address}:{port}" for address in self.found]


@pytest.mark.parametrize("address", ["127.0.0.1:7070", "[::1]:7070", "unix:/run/r.sock", "dns:///routers:7070"])
async def test_an_address_is_taken_as_it_is(address: str) -> None:
    assert await Named(address, RNG, Names("10.0.0.9")).addresses(1.0) == (address,)


async def test_a_name_stands_for_all_its_records() -> None:
    clock, names = Clock(), Names("10.0.0.1", "10.0.0.2")
    routers = Named("routers:7070", RNG, names, clock)
    assert sorted(await routers.addresses(1.0)) == ["10.0.0.1:7070", "10.0.0.2:7070"]
    await routers.addresses(1.0)
    assert names.asked == 1
    names.found = ["10.0.0.3"]
    routers.doubt("10.9.9.9:7070")
    assert len(await routers.addresses(1.0)) == 2, "that one was not of this name"
    routers.doubt("10.0.0.1:7070")
    assert await routers.addresses(1.0) == ("10.0.0.3:7070",)
    clock.now_s += DNS_AGE_S
    await routers.addresses(1.0)
    assert names.asked == 3


async def test_a_resolver_that_is_away_takes_no_router() -> None:
    names = Names("10.0.0.1")
    routers = Named("routers:7070", RNG, names, Clock())
    assert await routers.addresses(1.0) == ("10.0.0.1:7070",)
    names.away = True
    routers.doubt("10.0.0.1:7070")
    assert await routers.addresses(1.0) == ("10.0.0.1:7070",)


async def test_clients_spread_over_a_names_routers_and_each_keeps_its_order() -> None:
    rng, names = random.Random(1), Names(*(f"10.0.0.{number}" for number in range(1, 5)))
    clients = [Named("routers:7070", rng, names, Clock()) for _ in range(400)]
    firsts = Counter([(await client.addresses(1.0))[0] for client in clients])
    assert len(firsts) == 4 and min(firsts.values()) > 70
    before = await clients[0].addresses(1.0)
    names.found.reverse()
    clients[0].doubt(before[0])
    assert await clients[0].addresses(1.0) == before


async def test_which_family_of_addresses_comes_first_is_the_resolvers_to_say() -> None:
    names = Names("[fd00::1]", "10.0.0.1", "[fd00::2]", "10.0.0.2")
    for _ in range(20):
        found = await Named("routers:7070", RNG, names, Clock()).addresses(1.0)
        assert [address.startswith("[") for address in found] == [True, True, False, False]


async def test_clients_spread_over_the_own_zones_routers() -> None:
    rng, agent = random.Random(1), Agent()
    agent.routers["zone-a"] = [(f"a{number}", f"10.0.0.{number}:7070", None) for number in range(1, 4)]
    clients = [ConsulRouters("127.0.0.1:8500", rng, agent, Clock()) for _ in range(300)]
    orders = [await client.addresses(1.0) for client in clients]
    firsts = Counter(order[0] for order in orders)
    assert len(firsts) == 3 and min(firsts.values()) > 70
    assert all(order[3:] == ["10.1.0.1:7070"] for order in orders)


def test_forms() -> None:
    assert str(source("consul://127.0.0.1:8500", RNG)) == "consul://127.0.0.1:8500"
    assert str(source("routers:7070", RNG)) == "routers:7070"
    with pytest.raises(ValueError, match="empty"):
        source("", RNG)


class Agent(AgentApi):
    """Two datacenters, read only."""

    def __init__(self) -> None:
        self.routers: dict[str, list[tuple[str, str, str | None]]] = {
            "zone-a": [("a1", "10.0.0.1:7070", None)],
            "zone-b": [("b1", "10.1.0.1:7070", None), ("b2", "10.1.0.2:7070", "drains")],
        }
        self.status: dict[str, str] = {}
        self.away: set[str] = set()
        self.asked = 0

    async def services(self, service: str, zone: str, index: int, wait_s: float) -> Answer:
        assert service == SERVICE
        self.asked += 1
        if zone in self.away:
            raise CatalogError("UNREACHABLE", f"{zone} is away")
        return Answer(1, [self._row(zone, *router) for router in self.routers[zone]], True, 0)

    async def zones(self) -> Sequence[str]:
        if "zone-a" in self.away:
            raise CatalogError("UNREACHABLE", "the agent is away")
        return tuple(self.routers)

    async def register(self, service: str, record: ServiceRecord, check: TtlCheck, *, replace_checks: bool) -> None:
        raise NotImplementedError

    async def deregister(self, service_id: str) -> None:
        raise NotImplementedError

    async def mark(self, service_id: str, *, passing: bool, output: str) -> None:
        raise NotImplementedError

    async def epoch(self, service_id: str) -> str | None:
        raise NotImplementedError

    async def in_maintenance(self, service_id: str) -> bool:
        raise NotImplementedError

    def _row(self, zone: str, router: str, address: str, leaving: str | None) -> object:
        record = encode_router(Endpoint(router, address, zone, "e1", "", ()), leaving=leaving)
        assert record.meta == {
            "format": "1",
            "zone": zone,
            "epoch": "e1",
            "state": "leaving" if leaving else "serving",
            **({"leaving-because": leaving} if leaving else {}),
        }
        service = {"ID": router, "Address": record.address, "Port": record.port, "Meta": dict(record.meta)}
        return {"Service": service, "Checks": [{"CheckID": f"service:{router}", "Status": self.status.get(router)}]}


async def test_the_own_zone_comes_first_and_who_leaves_not_at_all() -> None:
    routers = ConsulRouters("127.0.0.1:8500", RNG, Agent(), Clock())
    assert await routers.addresses(1.0) == ["10.0.0.1:7070", "10.1.0.1:7070"]


async def test_it_is_read_again_once_a_router_failed() -> None:
    agent, clock = Agent(), Clock()
    routers = ConsulRouters("127.0.0.1:8500", RNG, agent, clock)
    await routers.addresses(1.0)
    agent.routers["zone-a"] = [("a2", "10.0.0.2:7070", None)]
    clock.now_s += 60
    assert (await routers.addresses(1.0))[0] == "10.0.0.1:7070" and agent.asked == 2
    routers.doubt("10.0.0.1:7070")
    assert (await routers.addresses(1.0))[0] == "10.0.0.2:7070" and agent.asked == 4
    routers.doubt("10.0.0.2:7070")
    await routers.addresses(1.0)
    assert agent.asked == 4, "a hundred calls that break together ask once"


async def test_critical_ones_come_last() -> None:
    agent = Agent()
    agent.status["a1"] = "critical"
    routers = ConsulRouters("127.0.0.1:8500", RNG, agent, Clock())
    assert await routers.addresses(1.0) == ["10.1.0.1:7070", "10.0.0.1:7070"]


@pytest.mark.parametrize("fault", ["agent away", "zone away", "empty", "unlisted"])
async def test_what_cannot_be_believed_takes_no_router(fault: str) -> None:
    agent, clock = Agent(), Clock()
    routers = ConsulRouters("127.0.0.1:8500", RNG, agent, clock)
    known = await routers.addresses(1.0)
    if fault == "agent away":
        agent.away = {"zone-a", "zone-b"}
    elif fault == "zone away":
        agent.away = {"zone-b"}
    elif fault == "empty":
        agent.routers = {"zone-a": [], "zone-b": []}
    else:
        del agent.routers["zone-b"]
    routers.doubt(known[0])
    clock.now_s += 60
    assert await routers.addresses(1.0) == known


async def test_nothing_known_is_no_address() -> None:
    agent = Agent()
    agent.away = {"zone-a", "zone-b"}
    assert await ConsulRouters("127.0.0.1:8500", RNG, agent, Clock()).addresses(1.0) == []
