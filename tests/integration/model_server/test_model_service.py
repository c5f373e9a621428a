"""Several models on one server over real gRPC: each answers, cold ones are readied, and moving them is a call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from discovery.endpoint import Residency
from discovery.memory import MemoryCatalog
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from model_server.residency.spec import ModelSpec
from model_server.server import ModelServer
from stoker.v1 import endpoint_pb2, generation_pb2, inference_pb2, model_pb2, model_pb2_grpc
from tests.fakes.fleet import QUICK, server_settings
from tests.fakes.gated import GatedEngine
from tests.fakes.inference import channel_to, error_details, generation, stream, token_ids
from tests.fakes.until import until

pytestmark = pytest.mark.integration

SIM = SimSettings(load_ms=150.0, sleep_ms=20.0, wake_ms=20.0, step_base_ms=2.0)
HOT, ASLEEP, STAGED = endpoint_pb2.RESIDENCY_HOT, endpoint_pb2.RESIDENCY_ASLEEP, endpoint_pb2.RESIDENCY_STAGED


@asynccontextmanager
async def serving(
    *names: str, catalog: MemoryCatalog | None = None, sim: SimSettings = SIM, **settings: object
) -> AsyncIterator[tuple[ModelServer, grpc.aio.Channel]]:
    """A server with these models, and a channel to it."""
    specs = [ModelSpec(name, partial(SimEngine, name, sim)) for name in names]
    registrar = catalog.registrar("zone-a", QUICK) if catalog else None
    async with ModelServer(server_settings(server_id="s", **settings), specs, registrar).running() as server:
        async with channel_to(server.address) as channel:
            yield server, channel


def asked(model: str, max_tokens: int = 5) -> generation_pb2.Generation:
    made = generation(max_tokens=max_tokens)
    made.model = model
    return made


async def answer(channel: grpc.aio.Channel, model: str) -> list[inference_pb2.GenerateStreamResponse]:
    return [part async for part in stream(channel, asked(model))]


async def where(channel: grpc.aio.Channel) -> dict[str, int]:
    listed = await model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())
    return {found.model.name: found.model.residency for found in listed.models}


async def load(channel: grpc.aio.Channel, model: str) -> list[model_pb2.ModelProgress]:
    call = model_pb2_grpc.ModelServiceStub(channel).LoadModel(
        model_pb2.LoadModelRequest(target=model_pb2.ModelTarget(model=model))
    )
    return [response.progress async for response in call]


async def test_two_hot_models_answer_in_turn_and_at_once_each_for_itself() -> None:
    async with serving("a", "b", max_hot=2) as (server, channel):
        in_turn = {name: await answer(channel, name) for name in "ab"}
        at_once = await asyncio.gather(*(answer(channel, name) for name in "ab" for _ in range(5)))
        for name, parts in in_turn.items():
            assert parts[0].started.model == name and len(token_ids(parts)) == 5
        assert [parts[0].started.model for parts in at_once] == ["a"] * 5 + ["b"] * 5
        assert server.endpoint().models[1].residency is Residency.HOT


async def test_a_cold_model_asked_of_the_server_itself_by_a_hundred_is_loaded_once_with_progress() -> None:
    async with serving("a", "b") as (server, channel):
        gate = asyncio.Event()
        server.models.find("b").spec = ModelSpec("b", lambda: GatedEngine("b", SIM, gate))
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(answer(channel, "b")) for _ in range(100)]
            await until(lambda: len(server.in_flight) == 100)
            gate.set()
        answers = [task.result() for task in asking]
        assert all(len(token_ids(parts)) == 5 for parts in answers)
        assert all(parts[0].HasField("progress") and parts[0].progress.server == "s" for parts in answers)
        assert all(parts[-1].finished.timings.load.ToMilliseconds() >= 100 for parts in answers)
        loads = {"model": "b", "was": "staged", "outcome": "ok"}
        assert server.metrics.registry.get_sample_value("stoker_server_model_loads_total", loads) == 1.0
        assert await where(channel) == {"a": ASLEEP, "b": HOT}


async def test_streams_of_the_other_models_go_on_while_one_loads() -> None:
    slow = SIM.model_copy(update={"load_ms": 400.0})
    async with serving("a", "b", "c", max_hot=2, sim=slow) as (_, channel):
        loop = asyncio.get_running_loop()
        gaps: list[float] = []
        parts = []

        async def read() -> None:
            last = loop.time()
            async for part in stream(channel, asked("a", max_tokens=400)):
                parts.append(part)
                if part.deltas:
                    gaps.append(loop.time() - last)
                    last = loop.time()

        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read())
            await until(lambda: len(gaps) > 5)
            await load(channel, "c")
            assert not reading.done(), "it was still at it when the other was ready"
        assert len(token_ids(parts)) == 400 and max(gaps) < 0.3
        assert await where(channel) == {"a": HOT, "b": ASLEEP, "c": HOT}


async def test_load_sleep_wake_unload_by_call_and_what_each_refuses() -> None:
    async with serving("a", "b") as (_, channel):
        models = model_pb2_grpc.ModelServiceStub(channel)
        a = model_pb2.ModelTarget(model="a")
        progress = await load(channel, "a")
        assert [each.residency for each in progress] == [HOT] and progress[0].fraction == 1.0
        slept = await models.SleepModel(model_pb2.SleepModelRequest(target=a))
        assert slept.model.residency == ASLEEP
        woken = [each.progress async for each in models.WakeModel(model_pb2.WakeModelRequest(target=a))]
        assert woken[-1].residency == HOT and woken[0].residency == ASLEEP
        unloaded = await models.UnloadModel(model_pb2.UnloadModelRequest(target=a))
        assert unloaded.model.residency == STAGED and unloaded.model.time_to_ready.ToMilliseconds() > 100
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in models.WakeModel(model_pb2.WakeModelRequest(target=a)):
                pass
        assert error_details(refused.value)[0] == "MODEL_NOT_ASLEEP"
        assert (await load(channel, "a"))[-1].residency == HOT
        for target, code in (
            (model_pb2.ModelTarget(), grpc.StatusCode.INVALID_ARGUMENT),
            (model_pb2.ModelTarget(model="x"), grpc.StatusCode.NOT_FOUND),
            (model_pb2.ModelTarget(model="a", server="other"), grpc.StatusCode.NOT_FOUND),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await models.SleepModel(model_pb2.SleepModelRequest(target=target))
            assert refused.value.code() is code
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await models.UnloadModel(model_pb2.UnloadModelRequest(target=a, grace=Duration(seconds=-1)))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_has_the_grace_to_end_and_then_hears_that_its_model_leaves() -> None:
    async with serving("a") as (_, channel):
        call = stream(channel, asked("a", max_tokens=2000))
        await call.read()
        request = model_pb2.SleepModelRequest(target=model_pb2.ModelTarget(model="a"), grace=Duration(nanos=10**7))
        await model_pb2_grpc.ModelServiceStub(channel).SleepModel(request)
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            while await call.read():
                pass
        assert error_details(cut.value)[0] == "MODEL_LEAVING"
        assert token_ids(await answer(channel, "a")), "it is readied again for who asks"


async def test_the_catalog_hears_of_each_move_at_once() -> None:
    catalog = MemoryCatalog(("zone-a",))
    seen: list[dict[str, Residency]] = []
    async with serving("a", "b", catalog=catalog) as (_, channel):

        def publish(view: object) -> None:
            for zone in view.zones.values():  # type: ignore[attr-defined]
                models = (entry.endpoint.models for entry in zone.entries.values())
                seen.extend({model.name: model.residency for model in each} for each in models)

        watching = asyncio.ensure_future(catalog.watcher("zone-a").run(publish))
        await until(lambda: bool(seen))
        await answer(channel, "b")
        took_s = await until(lambda: seen[-1] == {"a": Residency.ASLEEP, "b": Residency.HOT})
        assert took_s < 0.5
        assert {"a": Residency.ASLEEP, "b": Residency.STAGED} in seen, "while it loads, neither is said to be hot"
        watching.cancel()
        await asyncio.wait((watching,))
