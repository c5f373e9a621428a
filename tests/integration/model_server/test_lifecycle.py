"""A server's end, in this process: drained, failed, hurried. Its catalog is in memory, its gRPC is real."""

import asyncio
import socket
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from discovery.catalog import CatalogState
from discovery.memory import MemoryCatalog
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from model_server.listener import PortTaken
from model_server.liveness import LifeState
from model_server.server import ModelServer, ServerFailed
from tests.fakes.fleet import FAST, MODEL, QUICK, fleet, running_server, server_settings
from tests.fakes.inference import channel_to, error_details, generation, rest, stream, token_ids, unary
from tests.fakes.stopwatch import Stopwatch
from tests.fakes.until import until

pytestmark = pytest.mark.integration

SLOW = SimSettings(load_ms=0.0, step_base_ms=20.0)
WATCHFUL = {"probe_interval_seconds": 0.1, "probe_timeout_seconds": 0.4, "stuck_after_seconds": 0.4}


async def health_of(channel: grpc.aio.Channel) -> int:
    """The status of the server as a whole."""
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return int((await check(health_pb2.HealthCheckRequest())).status)


def states(catalog: MemoryCatalog, zone: str = "zone-a") -> dict[str, tuple[str, str]]:
    """Each registered server's `state` in its Meta and its check's status."""
    rows: Any = catalog.zone(zone).rows()
    return {
        row["Service"]["ID"]: (row["Service"]["Meta"].get("state", ""), row["Checks"][-1]["Status"]) for row in rows
    }


async def test_it_registers_only_when_the_probe_came_back() -> None:
    catalog = MemoryCatalog()
    engine = SimEngine(MODEL, FAST)
    engine.faults.inject(stall=True)
    server = ModelServer(server_settings(server_id="s"), engine, catalog.registrar("zone-a", QUICK))
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(server.run())
        await until(lambda: engine.load().waiting == 1)
        assert not states(catalog) and server.state is LifeState.STARTING
        engine.faults.inject(stall=False)
        await server.wait_serving()
        await until(lambda: "s" in states(catalog))
        server.stop()
    assert life.result() == 0


async def test_a_first_probe_that_does_not_come_back_ends_the_server() -> None:
    engine = SimEngine(MODEL, FAST)
    engine.faults.inject(stall=True)
    server = ModelServer(server_settings(first_probe_timeout_seconds=0.3), engine)
    assert await server.run() == 1
    assert server.state is LifeState.STUCK


async def test_drain_finishes_what_runs_refuses_what_comes_and_leaves_the_catalog() -> None:
    catalog = MemoryCatalog()
    async with fleet(catalog, 1, sim=SLOW) as (member,), channel_to(member.server.address) as channel:
        await until(lambda: "zone-a-0" in states(catalog))
        call = stream(channel, generation(max_tokens=30))
        first: Any = await call.read()
        member.server.stop()
        await until(lambda: member.server.state is LifeState.DRAINING)
        assert await health_of(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await unary(channel, generation(max_tokens=1))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        reason, retry_s = error_details(refused.value)
        assert reason == "SERVER_DRAINING" and retry_s is not None
        await until(lambda: states(catalog).get("zone-a-0", ("", ""))[0] == "leaving")
        assert len(member.server.in_flight) == 1, "it is to be seen leaving while it finishes"
        parts = [first, *await rest(call)]
        assert len(token_ids(parts)) == 30 and parts[-1].HasField("finished")
        await until(lambda: not states(catalog))


async def test_a_drain_beyond_its_limit_fails_what_still_runs_so_that_routers_take_over() -> None:
    settings = server_settings(drain_seconds=0.2)
    engine = SimEngine(MODEL, SLOW)
    server = ModelServer(settings, engine)
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(server.run())
        await server.wait_serving()
        async with channel_to(server.address) as channel:
            call = stream(channel, generation(max_tokens=5000))
            await call.read()
            server.stop()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await rest(call)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert error_details(failed.value)[0] == "SERVER_DRAINING"
    assert life.result() == 0


async def test_a_second_stop_ends_at_once() -> None:
    engine = SimEngine(MODEL, SLOW)
    server = ModelServer(server_settings(drain_seconds=60.0), engine)
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(server.run())
        await server.wait_serving()
        async with channel_to(server.address) as channel:
            call = stream(channel, generation(max_tokens=5000))
            await call.read()
            watch = Stopwatch()
            server.stop()
            await until(lambda: server.state is LifeState.DRAINING)
            server.stop()
            await life
            assert watch.s < 2.0
            call.cancel()


async def test_stop_while_loading_ends_the_load() -> None:
    server = ModelServer(server_settings(), SimEngine(MODEL, SimSettings(load_ms=60_000.0)))
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(server.run())
        await asyncio.sleep(0)
        server.stop()
        assert await life == 0


@pytest.mark.parametrize(
    ("fault", "state", "reason"),
    [
        ("dead", LifeState.DEAD, "ENGINE_DEAD"),
        ("stall", LifeState.STUCK, "ENGINE_STUCK"),
        ("device_lost", LifeState.DEVICE_LOST, "DEVICE_LOST"),
    ],
)
async def test_a_failed_engine_fails_its_streams_turns_critical_and_leaves(
    fault: str, state: LifeState, reason: str
) -> None:
    catalog = MemoryCatalog()
    seen: list[tuple[str, str]] = []
    settings = server_settings(server_id="s", **WATCHFUL)
    engine = SimEngine(MODEL, SLOW)
    server = ModelServer(settings, engine, catalog.registrar("zone-a", QUICK))
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(server.run())
        await server.wait_serving()
        await until(lambda: states(catalog).get("s", ("", ""))[1] == "passing")
        async with channel_to(server.address) as channel:
            call = stream(channel, generation(max_tokens=5000))
            await call.read()
            engine.faults.inject(**{fault: True})
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await rest(call)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            assert error_details(failed.value)[0] == reason
        while not life.done():
            seen.extend(found for found in states(catalog).values() if found not in seen)
            await asyncio.sleep(0)
    assert life.result() == 1
    assert server.state is state
    assert any(status == "critical" for _, status in seen), seen
    assert not states(catalog)


async def test_an_idle_engine_that_stalls_is_found_by_the_probe() -> None:
    engine = SimEngine(MODEL, FAST)
    server = ModelServer(server_settings(**WATCHFUL), engine)
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(server.run())
        await server.wait_serving()
        engine.faults.inject(stall=True)
        assert await life == 1
    assert server.state is LifeState.STUCK and "probe" in server.liveness.reason


async def test_a_full_queue_is_not_taken_for_a_stuck_engine() -> None:
    sim = SLOW.model_copy(update={"max_streams": 1, "step_base_ms": 10.0})
    async with running_server(server_settings(**WATCHFUL), sim) as member:
        async with channel_to(member.server.address) as channel:
            answers = await asyncio.gather(*(unary(channel, generation(f"{i}", max_tokens=20)) for i in range(10)))
        assert len(answers) == 10 and member.server.state is LifeState.SERVING


async def test_a_restart_on_the_same_port_serves() -> None:
    async with running_server() as first:
        port = first.server.port
        epoch = first.server.epoch
    async with running_server(server_settings(listen_port=port)) as second:
        assert (second.server.port, second.server.epoch != epoch) == (port, True)
        async with channel_to(second.server.address) as channel:
            assert (await unary(channel, generation(max_tokens=1))).outputs


async def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_server.listener._BIND_WITHIN_S", 0.2)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        server = ModelServer(server_settings(listen_port=port), SimEngine(MODEL, FAST))
        with pytest.raises(ServerFailed, match=str(port)):
            async with server.running():
                pass
    assert PortTaken.__doc__


async def test_the_catalog_shows_model_residency_and_load() -> None:
    catalog = MemoryCatalog(("zone-a", "zone-b"))
    async with fleet(catalog, 2) as members:
        await until(lambda: all(len(states(catalog, zone)) == 2 for zone in catalog.zones))
        endpoint = members[0].server.endpoint()
        assert endpoint.models[0].name == MODEL and endpoint.models[0].residency.value == "hot"
        assert endpoint.load.prefill_tokens_per_second > 1000.0 and endpoint.load.itl_ms > 0.0
        assert {member.server.endpoint().zone for member in members} == {"zone-a", "zone-b"}
    assert not states(catalog) and CatalogState.PASSING.value == "passing"
