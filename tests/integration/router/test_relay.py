"""Requests through a router to simulated servers, over real gRPC."""

import asyncio
import gc
import random
from contextlib import aclosing

import grpc
import grpc.aio
import psutil
import pytest

from discovery.memory import MemoryCatalog
from router.attempt import Attempt
from router.ledger import Key
from router.link_transport import LinkTransport
from router.server import RouterServer
from stoker.v1 import model_pb2, model_pb2_grpc, router_pb2, router_pb2_grpc
from stoker_common.link.state import LinkState
from tests.fakes.fleet import MODEL
from tests.fakes.inference import channel_to, generation, stream, token_ids, unary
from tests.fakes.mesh import mesh
from tests.fakes.until import until

pytestmark = pytest.mark.integration


async def test_a_stream_is_what_the_server_says_and_why_the_router_asked_it() -> None:
    async with mesh() as up, channel_to(up.address) as channel, channel_to(up.servers[0].server.address) as straight:
        relayed = [part async for part in stream(channel, generation(max_tokens=8))]
        direct = [part async for part in stream(straight, generation(max_tokens=8))]
        assert token_ids(relayed) == token_ids(direct)
        assert relayed[0].started.server == "zone-a-0"
        assert relayed[0].started.pick.reason == "nearest zone"
        assert relayed[0].started.pick.cost.total_ms > 0
        assert not direct[0].started.HasField("pick")
        (attempt,) = relayed[-1].finished.attempts
        assert (attempt.server, attempt.zone, attempt.code, attempt.tokens) == ("zone-a-0", "zone-a", 0, 8)
        await until(up.idle)


async def test_generate_answers_the_same_at_once() -> None:
    async with mesh() as up, channel_to(up.address) as channel:
        parts = [part async for part in stream(channel, generation(max_tokens=8))]
        whole = await unary(channel, generation(max_tokens=8))
        assert list(whole.outputs[0].token_ids) == token_ids(parts)
        assert whole.finished.usage.completion_tokens == 8
        assert whole.started.pick.candidates == 2


async def test_each_zones_router_serves_its_own_zone_first() -> None:
    async with mesh() as up:
        for zone in ("zone-a", "zone-b"):
            async with channel_to(up.address_of(zone)) as channel:
                assert (await unary(channel, generation(max_tokens=1))).started.zone == zone


async def test_a_session_returns_to_the_server_that_has_its_prefix_cached() -> None:
    async with mesh(4, zones=("zone-a",)) as up, channel_to(up.address) as channel:
        index = up.routers["zone-a"].learned.caches.index
        endpoints = [each.server.endpoint() for each in up.servers]
        await until(lambda: all((each.server, each.epoch) in index for each in endpoints))
        asked = generation("the same long beginning " * 40, max_tokens=2)
        asked.session.id = "s1"
        answers = [await unary(channel, asked) for _ in range(6)]
        assert len({answer.started.server for answer in answers}) == 1
        assert {answer.started.pick.reason for answer in answers[1:]} == {"session's cache"}
        assert answers[0].started.cached_tokens == 0
        assert all(answer.started.cached_tokens > 100 for answer in answers[1:])


async def test_status_explain_and_models_tell_what_the_router_sees() -> None:
    async with mesh(2) as up, channel_to(up.address) as channel:
        await unary(channel, generation(max_tokens=1))
        asked = router_pb2_grpc.RouterServiceStub(channel)
        status: router_pb2.StatusResponse = await asked.Status(router_pb2.StatusRequest())
        assert [zone.zone for zone in status.zones] == ["zone-a", "zone-b"]
        assert [each.endpoint.server for each in status.zones[1].endpoints] == ["zone-b-0", "zone-b-1"]
        first = status.zones[0].endpoints[0]
        assert first.catalog_state == router_pb2.CATALOG_STATE_PASSING
        assert first.breaker == router_pb2.BREAKER_ALIVE
        assert first.endpoint.models[0].name == MODEL
        assert status.zones[0].HasField("catalog_age")
        # Whoever answered has a prediction to be held against; nobody else.
        told = [each.calibration for zone in status.zones for each in zone.endpoints if each.calibration]
        ((calibration,),) = told
        assert (calibration.model, calibration.requests) == (MODEL, 1)
        assert [term.term for term in calibration.terms] == ["ready", "queue", "prefill", "rest"]

        explained = await asked.Explain(router_pb2.ExplainRequest(generation=generation(max_tokens=10)))
        assert len(explained.candidates) == 4
        totals = [each.cost.total_ms for each in explained.candidates]
        assert totals == sorted(totals)
        assert explained.chosen.startswith("zone-a")
        terms = explained.candidates[-1].cost
        assert terms.zone_ms >= 50
        assert terms.total_ms == pytest.approx(
            terms.ready_ms + terms.queue_ms + terms.prefill_ms + terms.decode_ms + terms.zone_ms
        )

        models = await model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(zone="zone-b"))
        assert [(each.server, each.model.name) for each in models.models] == [("zone-b-0", MODEL), ("zone-b-1", MODEL)]


async def test_status_shows_the_load_of_this_moment() -> None:
    """Not the catalog's, which may be 15 s old: somebody would look for streams that ended long ago."""
    async with mesh(zones=("zone-a",)) as up, channel_to(up.address) as channel:
        asked = router_pb2_grpc.RouterServiceStub(channel)

        async def until_running(count: int) -> None:
            async with asyncio.timeout(5.0):
                while True:
                    status: router_pb2.StatusResponse = await asked.Status(router_pb2.StatusRequest())
                    if status.zones[0].endpoints[0].endpoint.load.running == count:
                        return
                    await asyncio.sleep(0.01)

        call = stream(channel, generation(max_tokens=5000))
        await call.read()
        await until_running(1)
        call.cancel()
        await until_running(0)


async def test_a_killed_servers_requests_go_to_the_other_zone() -> None:
    async with mesh() as up, channel_to(up.address) as channel:
        assert (await unary(channel, generation(max_tokens=1))).started.zone == "zone-a"
        # Both signals at once: it does not say that it leaves.
        dying = up.server("zone-a-0").server
        dying.stop()
        dying.stop()
        await until(lambda: up.server("zone-a-0").server.stopping)
        answer = await unary(channel, generation(max_tokens=1))
        assert answer.started.zone == "zone-b"


async def test_a_cancelled_stream_frees_the_engine_within_a_second() -> None:
    async with mesh() as up, channel_to(up.address) as channel:
        call = stream(channel, generation(max_tokens=5000))
        await call.read()
        assert not up.idle()
        call.cancel()
        assert await until(up.idle) < 1.0


async def test_the_deadline_goes_along() -> None:
    async with mesh() as up, channel_to(up.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stream(channel, generation(max_tokens=5000), timeout=0.3):
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await until(up.idle) < 1.0


async def test_an_operators_maintenance_takes_a_server_out_within_a_second_and_back() -> None:
    catalog = MemoryCatalog(("zone-a",))
    async with mesh(2, catalog=catalog) as up, channel_to(up.address) as channel:

        async def servers() -> set[str]:
            # Long enough to be under way together: else a server that is a little faster has all of them.
            answers = await asyncio.gather(*(unary(channel, generation(f"{i}", max_tokens=20)) for i in range(8)))
            return {answer.started.server for answer in answers}

        assert await servers() == {"zone-a-0", "zone-a-1"}

        def holders() -> int:
            return len(up.routers["zone-a"].fleet.snapshot.holders[MODEL].by_key)

        catalog.maintain("zone-a", "zone-a-0", on=True)
        assert await until(lambda: holders() == 1) < 1.0
        assert await servers() == {"zone-a-1"}
        catalog.maintain("zone-a", "zone-a-0", on=False)
        assert await until(lambda: holders() == 2) < 1.0
        assert await servers() == {"zone-a-0", "zone-a-1"}


def linked(router: RouterServer, key: Key) -> bool:
    """Whether the link to this server is up."""
    assert isinstance(router.transport, LinkTransport)
    link, _ = router.transport._links.get(key, (None, None))
    return link is not None and link.state is LinkState.UP


def open_calls() -> int:
    """The gRPC calls of this process, on either side of which somebody still waits for something."""
    # By type: isinstance asks each object for its class, and some lazy ones of other libraries warn when asked.
    return sum(issubclass(type(each), grpc.aio.Call) and not each.done() for each in gc.get_objects())


async def test_200_streams_over_8_servers_leave_nothing_behind() -> None:
    """None fails, some are cancelled at a random moment, then counters, tasks, calls and descriptors are as before."""
    rng = random.Random(7)
    process = psutil.Process()

    async with mesh(4) as up:
        # The routers' channels and links to the servers stay, so open them all before counting, and use each: who
        # answers on a link has all its tasks.
        members = [(router, each) for router in up.routers.values() for each in router.fleet.snapshot.members.values()]
        for router, member in members:
            router.transport.want(member.endpoint)
        for router, member in members:
            await until(lambda router=router, member=member: linked(router, member.key))  # type: ignore[misc]
        for router, member in members:
            attempt = router.transport.attempt(Attempt(member.endpoint, generation(max_tokens=1), 5.0))
            async with aclosing(attempt) as parts:
                assert [part async for part in parts]
        await until(lambda: all(each.server.attached_routers == len(up.routers) for each in up.servers))
        # gRPC's own descriptors, which it opens for its first channel and keeps.
        async with channel_to(up.address_of("zone-a")) as channel:
            assert [part async for part in stream(channel, generation(max_tokens=1))]
        await until(up.idle)
        tasks, calls, descriptors = len(asyncio.all_tasks()), open_calls(), process.num_fds()

        async def one(channel: grpc.aio.Channel, i: int) -> str:
            call = stream(channel, generation(f"prompt number {i} " * rng.randint(1, 30), max_tokens=60))
            cancel_after = rng.randint(1, 40) if i % 3 == 0 else None
            ids: list[int] = []
            async for part in call:
                ids += token_ids([part])
                if cancel_after is not None and len(ids) >= cancel_after:
                    call.cancel()
                    return "cancelled"
            assert len(ids) == 60
            return "finished"

        channels = [channel_to(up.address_of(zone)) for zone in ("zone-a", "zone-b")]
        async with channels[0] as first, channels[1] as second:
            outcomes = await asyncio.gather(*(one((first, second)[i % 2], i) for i in range(200)))
        assert outcomes.count("cancelled") == 67
        assert outcomes.count("finished") == 133

        await until(up.idle, within_s=10.0)
        gc.collect()
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        await until(lambda: open_calls() <= calls)
        await until(lambda: process.num_fds() <= descriptors)


async def test_refusals_name_the_field_through_the_router() -> None:
    async with mesh() as up, channel_to(up.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, generation("x " * 20_000, max_tokens=5))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "generation.prompt" in (caught.value.details() or "")
        assert up.idle()


async def test_a_server_that_left_is_nobodys_ejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its link is let go of, and that is no dead link of a server that is no more."""
    async with mesh(2, zones=("zone-a",)) as up:
        router = up.routers["zone-a"]
        downs: list[str] = []

        def silent(key: tuple[str, str]) -> None:
            downs.append(key[0])

        monkeypatch.setattr(router.learned.caches, "silent", silent)
        up.server("zone-a-0").server.stop()
        await until(lambda: len(router.fleet.snapshot.members) == 1 and downs == ["zone-a-0"])
        nowhere = {"zone": "", "cause": "dead link"}
        assert router.registry.get_sample_value("stoker_router_ejections_total", nowhere) is None
