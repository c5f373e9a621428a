"""Models through the router: a cold one is readied once for all who wait, with progress, or refused in time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import grpc
import grpc.aio
import pytest

from discovery.endpoint import ModelState, Residency
from discovery.memory import MemoryCatalog
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from model_server.residency.spec import ModelSpec
from model_server.server import ModelServer
from router.server import RouterServer
from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2, model_pb2, model_pb2_grpc
from tests.fakes.fleet import QUICK, server_settings
from tests.fakes.gated import GatedEngine
from tests.fakes.inference import channel_to, error_details, generation, stream, token_ids
from tests.fakes.mesh import router
from tests.fakes.residency import measured
from tests.fakes.stopwatch import Stopwatch
from tests.fakes.until import until

pytestmark = pytest.mark.integration

ZONE = "zone-a"
SIM = SimSettings(load_ms=600.0, sleep_ms=10.0, wake_ms=10.0, step_base_ms=2.0)


class Up:
    """Servers that each hold `warm` hot and `cold` staged, and a router."""

    def __init__(self, servers: list[ModelServer], mesh: RouterServer, channel: grpc.aio.Channel) -> None:
        self.servers = servers
        self.router = mesh
        self.channel = channel

    async def answer(self, model: str, timeout: float | None = None) -> list[inference_pb2.GenerateStreamResponse]:
        return [part async for part in stream(self.channel, asked(model), timeout=timeout)]

    def loads(self, outcome: str = "ok", model: str = "cold") -> float:
        """How often the model was loaded, over all servers."""
        labels = {"model": model, "was": "staged", "outcome": outcome}
        registries = [server.metrics.registry for server in self.servers]
        return sum(each.get_sample_value("stoker_server_model_loads_total", labels) or 0.0 for each in registries)


def asked(model: str, max_tokens: int = 5) -> generation_pb2.Generation:
    return generation(model=model, max_tokens=max_tokens)


@asynccontextmanager
async def up(servers: int = 1, *, sim: SimSettings = SIM, max_hot: int = 1) -> AsyncIterator[Up]:
    """So many servers and routers; the channel is to the first router."""
    catalog = MemoryCatalog((ZONE,))
    async with AsyncExitStack() as held:
        running = []
        for i in range(servers):
            specs = [ModelSpec(name, partial(SimEngine, name, sim)) for name in ("warm", "cold")]
            own = server_settings(server_id=f"s-{i}", zone=ZONE, max_hot=max_hot)
            server = ModelServer(own, specs, catalog.registrar(ZONE, QUICK))
            running.append(await held.enter_async_context(server.running()))
        mesh = await held.enter_async_context(router(catalog, ZONE))
        await until(lambda: len(mesh.fleet.snapshot.members) == servers)
        channel = await held.enter_async_context(channel_to(f"127.0.0.1:{mesh.port}"))
        yield Up(running, mesh, channel)


async def test_a_cold_model_asked_for_by_a_hundred_at_once_is_loaded_once_and_all_are_answered() -> None:
    async with up(servers=3) as mesh:
        gate = asyncio.Event()
        for server in mesh.servers:
            server.models.find("cold").spec = ModelSpec("cold", lambda: GatedEngine("cold", SIM, gate))
            # So long that no crowd on the first makes a second server worth it, however slow this machine is.
            measured(server.models, "cold", Residency.STAGED, 60.0)
        await until(lambda: min(state.time_to_ready_ms for state in _states(mesh.router, "cold")) > 30_000.0)
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(mesh.answer("cold")) for _ in range(100)]
            await until(lambda: mesh.router.admission.queues().get("cold", (0, 0.0))[0] == 100)
            gate.set()
        answers = [task.result() for task in asking]
        assert all(len(token_ids(parts)) == 5 and parts[-1].HasField("finished") for parts in answers)
        assert mesh.loads() == 1.0
        assert len({parts[-1].finished.attempts[0].server for parts in answers}) == 1
        assert all(len(parts[-1].finished.attempts) == 1 for parts in answers)
        told = [[part.progress for part in parts if part.HasField("progress")] for parts in answers]
        assert all(told), "each hears what it waits for"
        assert all({progress.server for progress in each} == {told[0][0].server} for each in told)
        assert any(progress.activity == "loading weights" for progress in told[0])
        # The others still have what they had.
        homes = [server for server in mesh.servers if server.endpoint().models[0].residency is Residency.HOT]
        assert len(homes) == 2
        warm = await mesh.answer("warm")
        assert len(token_ids(warm)) == 5 and not any(part.HasField("progress") for part in warm)


async def test_what_is_hot_is_served_while_another_model_is_readied() -> None:
    async with up(servers=1, max_hot=2, sim=SIM) as mesh:
        held = mesh.servers[0].models.find("cold")
        await mesh.servers[0].models.put_away(held, Residency.STAGED, None)
        await until(lambda: not _hot(mesh.router, "cold"))
        cold = asyncio.ensure_future(mesh.answer("cold"))
        await until(lambda: mesh.router.readying.progress("cold") is not None)
        warm = await mesh.answer("warm")
        assert len(token_ids(warm)) == 5 and not cold.done()
        assert len(token_ids(await cold)) == 5


async def test_a_deadline_that_the_load_cannot_meet_is_refused_at_once_and_the_model_is_readied_all_the_same() -> None:
    async with up(sim=SIM.model_copy(update={"load_ms": 1000.0})) as mesh:
        await mesh.answer("cold")
        await mesh.servers[0].models.put_away(mesh.servers[0].models.find("cold"), Residency.STAGED, None)
        await until(lambda: not _hot(mesh.router, "cold"))
        watch = Stopwatch()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await mesh.answer("cold", timeout=0.6)
        assert error_details(refused.value)[0] == "READY_EXCEEDS_DEADLINE" and watch.s < 0.5
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: _hot(mesh.router, "cold"))
        assert len(token_ids(await mesh.answer("cold", timeout=5.0))) == 5
        assert mesh.loads() == 2.0


async def test_where_no_server_has_room_it_is_refused_or_waits_until_one_has() -> None:
    async with up(servers=1) as mesh:
        warm = mesh.servers[0].models.find("warm")
        warm.pinned = True
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await mesh.answer("cold", timeout=5.0)
        assert error_details(refused.value)[0] == "NO_ROOM"
        warm.pinned = False


async def test_the_next_server_readies_what_the_cheapest_cannot() -> None:
    async with up(servers=2) as mesh:
        broken = SimEngine("cold", SIM)
        await broken.stop()
        first = mesh.servers[0].models.find("cold")
        first.spec = ModelSpec("cold", lambda: broken)
        for server in mesh.servers[1:]:  # dearer, so that the broken one is asked first
            measured(server.models, "cold", Residency.STAGED, 60.0)
        measured(mesh.servers[0].models, "cold", Residency.STAGED, 0.5)
        # The catalog holds times in coarse steps.
        await until(lambda: max(state.time_to_ready_ms for state in _states(mesh.router, "cold")) > 30_000.0)
        parts = await mesh.answer("cold")
        assert parts[-1].finished.attempts[0].server == "s-1" and mesh.loads("failed") == 1.0


async def test_a_model_that_no_server_can_load_is_refused_with_the_reason_and_its_time() -> None:
    async with up(servers=1) as mesh:
        broken = SimEngine("cold", SIM)
        await broken.stop()
        mesh.servers[0].models.find("cold").spec = ModelSpec("cold", lambda: broken)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await mesh.answer("cold")
            assert error_details(refused.value)[0] == "MODEL_FAILED"
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert mesh.loads("failed") == 1.0
        assert mesh.router.admission.queues() == {}


async def test_a_client_that_gives_up_leaves_the_queue_and_the_load_goes_on() -> None:
    async with up(servers=1) as mesh:
        call = stream(mesh.channel, asked("cold"))
        part = await call.read()
        assert isinstance(part, inference_pb2.GenerateStreamResponse) and part.HasField("progress")
        call.cancel()
        await until(lambda: mesh.router.admission.queues() == {})
        await until(lambda: _hot(mesh.router, "cold"))
        assert mesh.loads() == 1.0


async def test_load_sleep_wake_and_unload_go_to_the_server_named_or_to_the_cheapest() -> None:
    async with up(servers=2) as mesh:
        models = model_pb2_grpc.ModelServiceStub(mesh.channel)

        def target(server: str = "", model: str = "cold") -> model_pb2.ModelTarget:
            return model_pb2.ModelTarget(model=model, server=server)

        async def load(server: str = "") -> list[model_pb2.ModelProgress]:
            request = model_pb2.LoadModelRequest(target=target(server))
            return [response.progress async for response in models.LoadModel(request)]

        news = await load("s-1")
        assert news[-1].server == "s-1" and news[-1].residency == endpoint_pb2.RESIDENCY_HOT
        assert news[0].residency == endpoint_pb2.RESIDENCY_STAGED
        assert [state.residency for state in _states(mesh.router, "cold")][1] is Residency.HOT, "known at once"
        assert [each.server for each in await load()] == ["s-1"], "where it is hot it is hot"
        slept = await models.SleepModel(model_pb2.SleepModelRequest(target=target()))
        assert slept.model.residency == endpoint_pb2.RESIDENCY_ASLEEP
        await until(lambda: not _hot(mesh.router, "cold"))
        woken = [each.progress async for each in models.WakeModel(model_pb2.WakeModelRequest(target=target()))]
        assert (woken[-1].server, woken[-1].residency) == ("s-1", endpoint_pb2.RESIDENCY_HOT)
        unloaded = await models.UnloadModel(model_pb2.UnloadModelRequest(target=target()))
        assert unloaded.model.residency == endpoint_pb2.RESIDENCY_STAGED
        await until(lambda: not _hot(mesh.router, "cold"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in models.WakeModel(model_pb2.WakeModelRequest(target=target())):
                pass
        assert error_details(refused.value)[0] == "MODEL_NOT_ASLEEP"
        for wrong, code in (
            (target(model=""), grpc.StatusCode.INVALID_ARGUMENT),
            (target(model="x"), grpc.StatusCode.NOT_FOUND),
            (target("nobody"), grpc.StatusCode.NOT_FOUND),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await models.UnloadModel(model_pb2.UnloadModelRequest(target=wrong))
            assert refused.value.code() is code


async def test_a_stream_whose_model_an_operator_puts_away_goes_on_elsewhere() -> None:
    async with up(servers=2) as mesh:
        alone = await mesh.answer("warm")
        call = stream(mesh.channel, asked("warm", 300))
        parts: list[inference_pb2.GenerateStreamResponse] = []
        while len(token_ids(parts)) < 20:
            part = await call.read()
            assert isinstance(part, inference_pb2.GenerateStreamResponse)
            parts.append(part)
        busy = next(server for server in mesh.servers if len(server.in_flight))
        await busy.models.put_away(busy.models.find("warm"), Residency.STAGED, 0.0)
        while not parts[-1].HasField("finished"):
            part = await call.read()
            assert isinstance(part, inference_pb2.GenerateStreamResponse)
            parts.append(part)
        ids = token_ids(parts)
        assert len(ids) == 300 and ids[:5] == token_ids(alone)
        assert len({attempt.server for attempt in parts[-1].finished.attempts}) == 2


def _states(mesh: RouterServer, model: str) -> list[ModelState]:
    members = mesh.fleet.snapshot.members.values()
    return [state for member in members if (state := member.endpoint.model(model)) is not None]


def _hot(mesh: RouterServer, model: str) -> bool:
    return any(state.residency is Residency.HOT for state in _states(mesh, model))
