"""Route: a server reserved, and streamed from by plain stubs with the ticket; over real gRPC."""

import asyncio
import logging
import time
from typing import Any

import grpc
import grpc.aio
import pytest

from discovery.memory import MemoryCatalog
from model_server.engines.sim_settings import SimSettings
from stoker.v1 import generation_pb2, inference_pb2, router_pb2, router_pb2_grpc
from stoker.v1.ticket_pb2 import Ticket
from stoker_common.fold import Fold
from stoker_common.status import from_rpc_error
from stoker_common.tickets import METADATA_KEY
from tests.fakes.inference import channel_to, generation, stream, unary
from tests.fakes.mesh import Mesh, mesh
from tests.fakes.until import until

pytestmark = pytest.mark.integration

KEY = "a key of the mesh that nobody may read"
SLOW = SimSettings(load_ms=0.0, step_base_ms=15.0, step_per_stream_ms=0.0)
keys = pytest.mark.parametrize("ticket_key", ["", KEY], ids=["no key", "key"])


async def route(up: Mesh, asked: generation_pb2.Generation, **more: Any) -> router_pb2.RouteResponse:
    """The router's answer; the request has its id then."""
    async with channel_to(up.address) as channel:
        request = router_pb2.RouteRequest(generation=asked, **more)
        response: router_pb2.RouteResponse = await router_pb2_grpc.RouterServiceStub(channel).Route(request, timeout=5)
    asked.request_id = response.request_id
    asked.resume.mode = response.resume_mode
    if not response.resume_mode:
        asked.ClearField("resume")
    return response


async def fold(call: Any) -> inference_pb2.GenerateResponse:
    """The whole answer of a stream."""
    folded = Fold()
    async for part in call:
        folded.add(part)
    return folded.response()


async def ask(
    routed: router_pb2.RouteResponse, asked: generation_pb2.Generation, ticket: bytes | None = None
) -> inference_pb2.GenerateResponse:
    """The answer of the server itself."""
    async with channel_to(routed.address) as channel:
        sent = routed.ticket if ticket is None else ticket
        return await fold(stream(channel, asked, metadata=((METADATA_KEY, sent),) if sent else (), timeout=20))


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert KEY not in str(caught.value)
    return caught.value.code(), from_rpc_error(caught.value).reason


def held(up: Mesh, zone: str = "zone-a") -> int:
    return len(up.routers[zone].reservations)


@keys
async def test_a_reserved_server_is_streamed_from_and_the_reservation_ends_with_the_stream(ticket_key: str) -> None:
    async with mesh(2, zones=("zone-a",), ticket_key=ticket_key) as up, channel_to(up.address) as relayed:
        expected = await unary(relayed, generation("direct", max_tokens=40))
        asked = generation("direct", max_tokens=40)
        routed = await route(up, asked)
        assert (held(up), up.routers["zone-a"].learned.ledger.in_flight) == (1, 1)
        assert routed.pick.candidates == 2
        found = await ask(routed, asked)
        assert found.outputs[0].text == expected.outputs[0].text
        assert found.started.server == routed.server
        await until(up.idle)
        assert held(up) == 0
        router = up.routers["zone-a"]
        assert router.registry.get_sample_value("stoker_router_reservations_ended_total", {"how": "ok"}) == 1
        tokens = {"model": "sim-model", "zone": "zone-a"}
        assert router.registry.get_sample_value("stoker_router_tokens_total", tokens) == 80


@keys
async def test_a_client_that_leaves_is_told_of(ticket_key: str) -> None:
    async with mesh(1, zones=("zone-a",), sim=SLOW, ticket_key=ticket_key) as up:
        asked = generation("left", max_tokens=4000)
        routed = await route(up, asked)
        asking = asyncio.ensure_future(ask(routed, asked))
        await until(lambda: up.servers[0].engine.load().running == 1)
        asking.cancel()
        await asyncio.wait((asking,))
        await until(lambda: held(up) == 0, within_s=2.0)
        registry = up.routers["zone-a"].registry
        assert registry.get_sample_value("stoker_router_reservations_ended_total", {"how": "cancelled"}) == 1
        await until(up.idle)


async def test_what_is_not_used_lapses() -> None:
    async with mesh(1, zones=("zone-a",), ticket_seconds=5.0) as up:
        await route(up, generation("never asked"))
        assert held(up) == 1
        began_s = time.monotonic()
        await until(lambda: held(up) == 0, within_s=10.0)
        assert time.monotonic() - began_s > 4.0
        await until(up.idle)


async def test_a_long_stream_keeps_its_reservation() -> None:
    async with mesh(1, zones=("zone-a",), sim=SLOW, ticket_seconds=5.0) as up:
        asked = generation("long", max_tokens=500, ignore_eos=True)
        routed = await route(up, asked)
        asking = asyncio.ensure_future(ask(routed, asked))
        await until(lambda: up.servers[0].engine.load().steps > 450, within_s=20)
        assert held(up) == 1
        await asking
        await until(lambda: held(up) == 0)
        registry = up.routers["zone-a"].registry
        assert registry.get_sample_value("stoker_router_reservations_ended_total", {"how": "ok"}) == 1


async def test_a_server_with_a_key_takes_only_what_a_router_let_in(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with mesh(2, zones=("zone-a",), ticket_key=KEY) as up:
        asked = generation("x", max_tokens=5)
        routed = await route(up, asked)
        code = grpc.StatusCode
        assert await refused(ask(routed, asked, b"")) == (code.UNAUTHENTICATED, "TICKET_MISSING")
        changed = Ticket.FromString(routed.ticket)
        changed.claims = changed.claims.replace(b"sim-model", b"sim-medal")
        assert await refused(ask(routed, asked, changed.SerializeToString())) == (
            code.UNAUTHENTICATED,
            "TICKET_INVALID",
        )
        more = generation("x", max_tokens=500)
        more.request_id = asked.request_id
        assert await refused(ask(routed, more)) == (code.PERMISSION_DENIED, "TICKET_OTHER_REQUEST")
        other = next(each for each in up.servers if each.server.settings.server_id != routed.server)
        elsewhere = router_pb2.RouteResponse(address=other.server.address, ticket=routed.ticket)
        assert await refused(ask(elsewhere, asked)) == (code.PERMISSION_DENIED, "TICKET_OTHER_SERVER")
        assert len((await ask(routed, asked)).outputs[0].token_ids) == 5
        assert await refused(ask(routed, asked)) == (code.PERMISSION_DENIED, "TICKET_USED")
        await until(up.idle)
    assert KEY not in caplog.text


@pytest.mark.parametrize("links", [True, False], ids=["links", "calls"])
async def test_the_relay_has_tickets_too(links: bool) -> None:
    async with mesh(1, zones=("zone-a",), ticket_key=KEY, links=links) as up, channel_to(up.address) as channel:
        answer = await unary(channel, generation("x", max_tokens=5))
        assert len(answer.outputs[0].token_ids) == 5


async def test_a_router_with_another_key_says_so() -> None:
    async with mesh(1, zones=("zone-a",), ticket_key=KEY) as up:
        server = up.servers[0].server
        asked = generation("x")
        forged = Ticket(claims=b"", mac=b"0" * 32).SerializeToString()
        found = await refused(ask(router_pb2.RouteResponse(address=server.address), asked, forged))
        assert found == (grpc.StatusCode.UNAUTHENTICATED, "TICKET_INVALID")


async def test_requests_that_no_server_could_serve_are_refused_as_relayed_ones_are() -> None:
    async with mesh(1, zones=("zone-a",)) as up:
        assert await refused(route(up, generation("x", max_tokens=-1))) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
        )
        assert await refused(route(up, generation("x", model="nobody's"))) == (
            grpc.StatusCode.NOT_FOUND,
            "MODEL_NOT_FOUND",
        )
        assert held(up) == 0


async def test_the_first_stream_to_another_zone_is_booked_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The link to its server comes up behind it: what was told before is told again."""
    catalog = MemoryCatalog(("zone-a", "zone-b"))
    async with mesh(1, catalog=catalog, sim=SLOW) as up:
        router, there = up.routers["zone-a"], up.server("zone-b-0")
        catalog.maintain("zone-a", "zone-a-0", on=True)
        await until(lambda: len(router.fleet.snapshot.holders["sim-model"].by_key) == 1)
        asked = generation("far away " * 50, max_tokens=300, ignore_eos=True)
        with monkeypatch.context() as late:
            late.setattr(router.transport, "want", lambda endpoint: None)
            routed = await route(up, asked)
        assert routed.server == "zone-b-0"
        asking = asyncio.ensure_future(ask(routed, asked))
        account = router.learned.ledger.accounts[(routed.server, routed.epoch)]
        await until(lambda: there.engine.load().steps > 20)
        assert account.own_prompt_tokens > 0
        router.transport.want(there.server.endpoint())
        await until(lambda: account.own_prompt_tokens == 0)
        assert there.engine.load().running == 1 and account.own_streams == 1
        assert len((await asking).outputs[0].token_ids) == 300
        await until(up.idle)


@pytest.mark.parametrize("zone", ["zone-a", "zone-b"])
async def test_maintenance_moves_a_clients_stream(zone: str) -> None:
    """Its client hears that it should go on elsewhere, and Route says where."""
    catalog = MemoryCatalog(("zone-a", "zone-b"))
    async with mesh(1, catalog=catalog, sim=SLOW) as up:
        victim = up.server(f"{zone}-0")
        if zone == "zone-b":
            catalog.maintain("zone-a", "zone-a-0", on=True)
            holders = up.routers["zone-a"].fleet
            await until(lambda: len(holders.snapshot.holders["sim-model"].by_key) == 1)
        asked = generation("moved", max_tokens=400)
        routed = await route(up, asked)
        assert routed.server == f"{zone}-0"
        folded, told = Fold(), asyncio.Event()

        async def read() -> None:
            async with channel_to(routed.address) as channel:
                async for part in stream(channel, asked, metadata=((METADATA_KEY, routed.ticket),)):
                    folded.add(part)
                    told.set()

        reading = asyncio.ensure_future(read())
        await told.wait()
        if zone == "zone-b":
            catalog.maintain("zone-a", "zone-a-0", on=False)
            await until(lambda: len(up.routers["zone-a"].fleet.snapshot.holders["sim-model"].by_key) == 2)
        catalog.maintain(zone, victim.server.settings.server_id, on=True)
        assert await refused(reading) == (grpc.StatusCode.UNAVAILABLE, "SERVER_MAINTENANCE")
        so_far = folded.response()
        again = generation("moved", max_tokens=400)
        again.resume.model = so_far.started.model
        again.resume.prompt_token_ids.extend(so_far.started.prompt_token_ids)
        again.resume.outputs.add(token_ids=so_far.outputs[0].token_ids, text_bytes=len(so_far.outputs[0].text.encode()))
        onward = await route(up, again, servers_tried=[routed.server])
        assert onward.server != routed.server and onward.resume_mode
        rest = await ask(onward, again)
        assert len(so_far.outputs[0].token_ids) + len(rest.outputs[0].token_ids) == 400
        await until(up.idle)
