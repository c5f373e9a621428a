"""Direct mode over fake routers and servers: who is asked what, and what each is told."""

import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from stoker.v1 import generation_pb2, router_pb2
from stoker_client.call import Deadline, Metadata
from stoker_client.direct import DirectRouters, Mode
from stoker_client.errors import StokerError
from stoker_client.relay import ResumeRules, relayed
from stoker_client.servers import AGAIN_S, Servers
from stoker_client.story import Part
from stoker_common.refusal import Code
from stoker_common.tickets import METADATA_KEY
from tests.fakes.clock import FakeClock
from tests.unit.stoker_client.test_relay import FakeRouter, Script, delta, finished, folded, started

BROKE = StokerError(Code.UNAVAILABLE, "Socket closed")


@dataclass
class FakeRouting(FakeRouter):
    """Names its servers in turn."""

    servers: list[str | StokerError] = field(default_factory=list)
    routed: list[router_pb2.RouteRequest] = field(default_factory=list)
    released: list[router_pb2.ReleaseRequest] = field(default_factory=list)

    async def route(
        self, request: router_pb2.RouteRequest, metadata: Metadata, timeout_s: float | None
    ) -> router_pb2.RouteResponse:
        kept = router_pb2.RouteRequest()
        kept.CopyFrom(request)
        self.routed.append(kept)
        server = self.servers.pop(0)
        if isinstance(server, StokerError):
            raise server
        number = str(len(self.routed)).encode()
        response = router_pb2.RouteResponse(
            server=server, address=f"{server}:1", zone="zone-a", epoch="e", ticket=b"t" + number, reservation=number
        )
        response.request_id = request.generation.request_id
        response.pick.reason = "nearest zone"
        return response

    async def release(self, request: router_pb2.ReleaseRequest, timeout_s: float) -> None:
        self.released.append(request)


class World:
    """One or more routers, and servers by name."""

    def __init__(self, mode: Mode, *routers: FakeRouting, **servers: Script) -> None:
        self.clock = FakeClock()
        self.routers = list(routers)
        self.scripts = {f"{name}:1": script for name, script in servers.items()}
        self.asked: list[tuple[str, generation_pb2.Generation, Metadata]] = []
        self.lost_ones: list[str] = []
        self.mode = mode
        self.servers = Servers(lambda address: cast(Any, self), self.clock)
        self.servers.connected = self._connected  # type: ignore[method-assign]

    async def connected(self, within_s: float | None, avoid: str = "") -> AsyncGenerator[FakeRouting, None]:
        for router in sorted(self.routers, key=lambda router: router.address == avoid):
            yield router

    def lost(self, address: str) -> None:
        self.lost_ones.append(address)

    async def _connected(self, address: str, within_s: float | None) -> Any:
        if address not in self.scripts:
            return None
        self.servers._reached.add(address)
        world = self

        class Server:
            async def stream(
                self, generation: generation_pb2.Generation, metadata: Metadata, timeout_s: float | None
            ) -> AsyncGenerator[Part, None]:
                world.asked.append((address, generation, metadata))
                for said in world.scripts[address]:
                    if isinstance(said, StokerError):
                        raise said
                    part = Part()
                    part.CopyFrom(said)
                    yield part

        return Server()

    async def sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def answer(self) -> list[Part]:
        parts = relayed(
            DirectRouters(self, self.servers, self.mode),
            generation_pb2.Generation(model="m", text="hello"),
            (("traceparent", "x"),),
            Deadline(None),
            rules=ResumeRules(),
            rng=random.Random(0),
            clock=self.clock,
            sleep=self.sleep,
        )
        return [part async for part in parts]


def whole(server: str) -> Script:
    return [started(server), delta("hé", 1, 2), finished(tokens=2)]


def attempts(parts: Sequence[Part]) -> list[tuple[str, int]]:
    return [(each.server, each.code) for each in folded(parts).finished.attempts]


async def test_the_answer_comes_from_the_server_with_the_ticket_and_says_why_it_was_picked() -> None:
    router = FakeRouting("r", [[]], servers=["s1"])
    world = World(Mode.DIRECT, router, s1=whole("s1"))
    parts = await world.answer()
    ((address, asked, metadata),) = world.asked
    assert (address, asked.text, dict(metadata)) == ("s1:1", "hello", {"traceparent": "x", METADATA_KEY: b"t1"})
    assert asked.request_id == router.routed[0].generation.request_id != ""
    assert folded(parts).started.pick.reason == "nearest zone"
    assert attempts(parts) == [("s1", 0)]
    assert not router.requests


async def test_a_server_lost_before_its_first_part_is_told_and_replaced_by_the_same_router() -> None:
    router, other = FakeRouting("r", [[]], servers=["s1", "s2"]), FakeRouting("other", [[]])
    world = World(Mode.DIRECT, router, other, s1=[BROKE], s2=whole("s2"))
    parts = await world.answer()
    assert list(router.routed[1].servers_tried) == ["s1"]
    (lost,) = router.routed[1].lost
    assert (lost.reservation, lost.code, lost.unreachable) == (b"1", 14, False)
    assert attempts(parts) == [("s1", 14), ("s2", 0)]
    assert not other.routed and not world.lost_ones


async def test_a_server_lost_in_the_middle_is_gone_on_from() -> None:
    router = FakeRouting("r", [[]], servers=["s1", "s2"])
    world = World(
        Mode.DIRECT,
        router,
        s1=[started("s1"), delta("hé", 1, 2), BROKE],
        s2=[started("s2"), delta("llo", 3), finished()],
    )
    parts = await world.answer()
    assert folded(parts).outputs[0].text == "héllo"
    again = router.routed[1].generation
    assert list(again.resume.outputs[0].token_ids) == [1, 2]
    assert [attempt[0] for attempt in attempts(parts)] == ["s1", "s2"]
    assert "server s1" in folded(parts).finished.attempts[0].reason


async def test_what_is_the_callers_own_is_told_at_once() -> None:
    mistake = StokerError(Code.INVALID_ARGUMENT, "no", reason="INVALID_FIELD", field="generation.text")
    router = FakeRouting("r", [[]], servers=["s1"])
    with pytest.raises(StokerError) as told:
        await World(Mode.AUTO, router, s1=[mistake]).answer()
    assert told.value is mistake


@pytest.mark.parametrize(
    "why",
    [
        pytest.param("unreachable", id="no way to the server"),
        pytest.param("unimplemented", id="a router of before"),
        pytest.param("expired", id="clocks differ"),
    ],
)
async def test_auto_relays_and_remembers(why: str) -> None:
    relay: Script = whole("relayed")
    old = StokerError(Code.UNIMPLEMENTED, "Route: not there yet")
    servers: list[str | StokerError] = [old, "s1"] if why == "unimplemented" else ["s1", "s1"]
    router = FakeRouting("r", [relay], servers=servers)
    scripts: dict[str, Script] = {}
    if why == "expired":
        scripts["s1"] = [StokerError(Code.UNAUTHENTICATED, "ended", reason="TICKET_EXPIRED")]
    world = World(Mode.AUTO, router, **scripts)
    for _ in range(3):
        assert folded(await world.answer()).started.server == "relayed"
    assert len(router.routed) == 1
    assert len(router.released) == (why != "unimplemented")
    world.clock.advance(AGAIN_S)
    world.scripts["s1:1"] = whole("s1")
    assert folded(await world.answer()).started.server == "s1"


async def test_a_relay_that_is_lost_after_a_ticket_was_refused_is_a_lost_router() -> None:
    """The server is none the worse, and the router that relayed is the one that broke."""
    first = FakeRouting("r1", [[BROKE]], servers=["s1"])
    second = FakeRouting("r2", [whole("relayed")], servers=["s1"])
    expired = StokerError(Code.UNAUTHENTICATED, "ended", reason="TICKET_EXPIRED")
    world = World(Mode.AUTO, first, second, s1=[expired])
    assert folded(await world.answer()).started.server == "relayed"
    assert world.lost_ones == ["r1"]
    assert len(first.routed) == 1 and len(first.requests) == 1
    (released,) = first.released
    assert (released.lost.reservation, released.lost.reason) == (b"1", "TICKET_EXPIRED")


async def test_servers_that_do_not_connect_are_told_as_such_and_do_not_use_up_the_tries() -> None:
    away = [f"away{number}" for number in range(6)]
    router = FakeRouting("r", [[]], servers=[*away, "s1"])
    world = World(Mode.DIRECT, router, s1=whole("s1"))
    parts = await world.answer()
    assert folded(parts).started.server == "s1"
    assert list(router.routed[-1].servers_unreached) == list(router.routed[-1].servers_tried) == away


async def test_a_server_that_is_overloaded_is_told_with_the_time_to_come_back() -> None:
    full = StokerError(Code.RESOURCE_EXHAUSTED, "many wait", reason="SERVER_OVERLOADED", retry_after_s=2.5)
    router = FakeRouting("r", [[]], servers=["s1", "s2"])
    world = World(Mode.DIRECT, router, s1=[full], s2=whole("s2"))
    await world.answer()
    (lost,) = router.routed[1].lost
    assert (lost.reason, lost.retry_after.ToTimedelta().total_seconds()) == ("SERVER_OVERLOADED", 2.5)


async def test_a_server_that_was_reached_before_and_is_gone_is_a_lost_server() -> None:
    router = FakeRouting("r", [whole("relayed")], servers=["s1", "s1", "s2"])
    world = World(Mode.AUTO, router, s1=whole("s1"), s2=whole("s2"))
    await world.answer()
    del world.scripts["s1:1"]
    parts = await world.answer()
    assert folded(parts).started.server == "s2"
    (lost,) = router.routed[2].lost
    assert lost.unreachable
    assert not router.requests


async def test_direct_does_not_relay() -> None:
    old = StokerError(Code.UNIMPLEMENTED, "Route: not there yet")
    router = FakeRouting("r", [whole("relayed")], servers=[old])
    with pytest.raises(StokerError) as told:
        await World(Mode.DIRECT, router).answer()
    assert told.value is old


async def test_a_router_that_is_lost_is_another_routers_business() -> None:
    first = FakeRouting("r1", [[]], servers=[StokerError(Code.UNAVAILABLE, "Socket closed")])
    second = FakeRouting("r2", [[]], servers=["s1"])
    world = World(Mode.DIRECT, first, second, s1=whole("s1"))
    assert attempts(await world.answer()) == [("s1", 0)]
    assert world.lost_ones == ["r1"]


async def test_nobody_is_asked_for_servers_without_end() -> None:
    class Endless(list[Any]):
        def pop(self, at: Any = 0) -> Any:
            return "s1"

    router = FakeRouting("r", [[]], servers=Endless())
    with pytest.raises(StokerError) as told:
        await World(Mode.DIRECT, router, s1=[BROKE]).answer()
    assert told.value.reason == "SERVER_LOST"
    assert len(router.routed) == 4
    # Nor for one that does not connect, if it is named again and again.
    with pytest.raises(StokerError):
        await World(Mode.DIRECT, router).answer()
    assert len(router.routed) <= 10
