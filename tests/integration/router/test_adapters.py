"""LoRA adapters through the mesh: asked for in either way, loaded once, gone on with under their name."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Literal

import grpc
import grpc.aio
import pytest

from discovery.coarse import coarse_rate
from discovery.memory import MemoryCatalog
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from model_server.residency.spec import AdapterSpec, ModelSpec
from model_server.server import ModelServer
from router.server import RouterServer
from stoker.v1 import generation_pb2, inference_pb2
from stoker_client import Client, Code, StokerError
from tests.fakes.fleet import QUICK, server_settings
from tests.fakes.inference import channel_to, generation, stream, token_ids
from tests.fakes.mesh import router
from tests.fakes.until import until

pytestmark = pytest.mark.integration

ZONE = "zone-a"
SIM = SimSettings(load_ms=300.0, sleep_ms=10.0, wake_ms=10.0, step_base_ms=2.0, adapter_load_ms=60.0)
KEY = "a key of the mesh that nobody may read"
LONG = "the boilers are hot and the lamps are lit; " * 40
Part = inference_pb2.GenerateStreamResponse


class Up:
    """Servers, a router, the ways to it."""

    def __init__(self, servers: Sequence[ModelServer], engines: Sequence[SimEngine], mesh: RouterServer) -> None:
        self.servers = servers
        self.engines = engines
        self.router = mesh
        self.address = f"127.0.0.1:{mesh.port}"

    def loads(self, model: str) -> float:
        """How often the model was loaded, over all servers."""
        labels = {"model": model, "was": "staged", "outcome": "ok"}
        registries = [server.metrics.registry for server in self.servers]
        return sum(each.get_sample_value("stoker_server_model_loads_total", labels) or 0.0 for each in registries)

    def ready_ms(self, server: str, model: str) -> float:
        """How long a server says that a model of its takes to be ready."""
        models = next(each for each in self.servers if each.settings.server_id == server).models
        return models.state(models.find(model)).time_to_ready_ms


@asynccontextmanager
async def up(
    adapters: Mapping[str, Sequence[str]], *, sim: SimSettings = SIM, ticket_key: str = ""
) -> AsyncIterator[Up]:
    """A server for each name, with the model `base` and these adapters of it, a cold model beside, and a router."""
    catalog = MemoryCatalog((ZONE,))
    async with AsyncExitStack() as held:
        servers, engines = [], []
        for name, of_base in adapters.items():
            engines.append(SimEngine("base", sim))
            specs: list[ModelSpec | AdapterSpec] = [ModelSpec("base", partial(_one, engines[-1]))]
            specs.append(ModelSpec("beside", partial(SimEngine, "beside", sim)))
            specs += [AdapterSpec(each, "base", f"/adapters/{each}") for each in of_base]
            own = server_settings(server_id=name, zone=ZONE, ticket_key=ticket_key)
            server = ModelServer(own, specs, catalog.registrar(ZONE, QUICK))
            servers.append(await held.enter_async_context(server.running()))
        mesh = await held.enter_async_context(router(catalog, ZONE, ticket_key=ticket_key))
        await until(lambda: len(mesh.fleet.snapshot.members) == len(servers))
        yield Up(servers, engines, mesh)


def _one(engine: SimEngine) -> SimEngine:
    return engine


async def _gated(gate: asyncio.Event, add: Callable[[str, str], Awaitable[None]], name: str, source: str) -> None:
    await gate.wait()
    await add(name, source)


def asked(adapter: str = "", *, text: str = "one two three", max_tokens: int = 8) -> generation_pb2.Generation:
    made = generation(text, model="base", max_tokens=max_tokens)
    made.lora_adapter = adapter
    return made


def by_name(adapter: str, text: str = "one two three", max_tokens: int = 8) -> generation_pb2.Generation:
    return generation(text, model=adapter, max_tokens=max_tokens)


async def answer(channel: grpc.aio.Channel, of: generation_pb2.Generation) -> list[Part]:
    return [part async for part in stream(channel, of)]


async def test_both_ways_of_asking_mean_the_same_and_are_routed_the_same() -> None:
    async with up({"s-0": ["a"], "s-1": ["a"]}) as mesh, channel_to(mesh.address) as channel:
        first = await answer(channel, asked("a", text=LONG))
        again = await answer(channel, by_name("a", LONG))
        plain = await answer(channel, asked(text=LONG))
        assert token_ids(first) == token_ids(again) != token_ids(plain)
        started = [part.started for parts in (first, again, plain) for part in parts if part.HasField("started")]
        assert [each.model for each in started] == ["a", "a", "base"]
        assert started[1].server == started[0].server and started[1].cached_tokens > 0, "the same chain, wherever asked"
        assert started[2].cached_tokens == 0, "and not its base's"
        assert mesh.loads("a") == 1.0


async def test_a_hundred_who_ask_at_once_have_it_loaded_once_and_hear_how_far_it_is() -> None:
    # With places for all: where one server has not enough, another readies it, too.
    large = SIM.model_copy(update={"max_streams": 128})
    async with up({"s-0": ["a"], "s-1": ["a"]}, sim=large) as mesh, channel_to(mesh.address) as channel:
        gate = asyncio.Event()
        for engine in mesh.engines:
            engine.add_adapter = partial(_gated, gate, engine.add_adapter)  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as tasks:
            spelled = [asked("a") if i % 2 else by_name("a") for i in range(100)]
            asking = [tasks.create_task(answer(channel, each)) for each in spelled]
            await until(lambda: mesh.router.admission.queues().get("a", (0, 0.0))[0] == 100)
            gate.set()
        answers = [task.result() for task in asking]
        assert len({tuple(token_ids(parts)) for parts in answers}) == 1
        assert mesh.loads("a") == 1.0
        assert all(any(part.HasField("progress") for part in parts) for parts in answers)


async def test_a_stream_of_the_base_goes_on_while_adapters_come_and_go() -> None:
    slow = SIM.model_copy(update={"adapter_load_ms": 400.0})
    async with up({"s-0": ["a", "b"]}, sim=slow) as mesh, channel_to(mesh.address) as channel:
        loop, gaps = asyncio.get_running_loop(), list[float]()

        async def read() -> None:
            last = loop.time()
            async for part in stream(channel, asked(max_tokens=500)):
                if part.deltas:
                    gaps.append(loop.time() - last)
                    last = loop.time()

        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read())
            await until(lambda: len(gaps) > 5)
            await answer(channel, asked("a"))
            assert not reading.done(), "it was still at it when the adapter answered"
        assert max(gaps) < 0.3


async def test_what_is_asked_for_wrongly_is_refused_by_its_field() -> None:
    async with up({"s-0": ["a"]}) as mesh, Client(mesh.address) as client:
        for model, adapter, code, field in (
            ("base", "x", Code.NOT_FOUND, "generation.lora_adapter"),
            ("x", "", Code.NOT_FOUND, "generation.model"),
            ("base", "beside", Code.INVALID_ARGUMENT, "generation.lora_adapter"),
            ("beside", "a", Code.INVALID_ARGUMENT, "generation.lora_adapter"),
        ):
            with pytest.raises(StokerError) as refused:
                await client.generate("hello", model=model, lora_adapter=adapter, max_tokens=2)
            assert refused.value.code is code and field in str(refused.value), str(refused.value)


async def test_ready_costs_its_load_where_its_base_is_hot_and_its_bases_besides_where_that_is_not() -> None:
    async with up({"s-0": ["a"], "s-1": ["a"]}) as mesh, Client(mesh.address) as client:
        # A base that has been woken once has a time to wake.
        await client.sleep_model("base", server="s-1")
        for server, model in (("s-1", "base"), ("s-0", "a"), ("s-1", "a")):
            async for _ in client.load_model(model, server=server):
                pass
        for server in ("s-0", "s-1"):
            await client.unload_model("a", server=server)
        alone_ms = mesh.ready_ms("s-1", "a")
        await client.sleep_model("base", server="s-1")
        # Servers say what they measured, in two digits, however busy the machine was; routers hear it in coarse steps.
        own_ms, base_ms, with_base_ms = (mesh.ready_ms(*of) for of in (("s-0", "a"), ("s-1", "base"), ("s-1", "a")))
        assert own_ms >= 55 and base_ms > 0 and with_base_ms == pytest.approx(alone_ms + base_ms, rel=0.1)
        heard = {"s-0": coarse_rate(own_ms), "s-1": coarse_rate(with_base_ms)}
        async with asyncio.timeout(10.0):  # until the links have told, too, that s-1 has room now
            while True:
                explained = await client.explain("hello", model="base", lora_adapter="a", max_tokens=2)
                if {each.server: each.cost.ready_ms for each in explained.candidates} == heard:
                    break
        assert explained.chosen == "s-0"


@pytest.mark.parametrize("mode", ["relay", "direct"])
async def test_a_stream_goes_on_under_its_adapter_on_the_server_that_lists_it(mode: Literal["relay", "direct"]) -> None:
    async with up({"s-0": ["a"]}) as alone, Client(alone.address) as client:
        expected = await client.generate(LONG, model="a", max_tokens=150)
    three = {"s-0": ["a"], "s-1": ["a"], "s-2": list[str]()}
    async with up(three, ticket_key=KEY) as mesh, Client(mesh.address, mode=mode) as client:
        call = asyncio.ensure_future(client.generate(LONG, model="base", lora_adapter="a", max_tokens=150))
        await until(lambda: any(engine.load().steps > 25 and engine.load().running for engine in mesh.engines))
        victim = next(i for i, engine in enumerate(mesh.engines) if engine.load().running)
        mesh.engines[victim].faults.inject(dead=True)
        found = await call
        assert found.token_ids == expected.token_ids and found.text == expected.text
        servers = [attempt.server for attempt in found.attempts]
        assert servers[0] == f"s-{victim}" and servers[-1] == f"s-{1 - victim}"


async def test_no_server_goes_on_with_an_adapter_that_it_does_not_list() -> None:
    async with up({"s-0": ["a"], "s-1": []}) as mesh, channel_to(mesh.address) as channel:
        call = stream(channel, asked("a", max_tokens=400), timeout=3.0)
        parts: list[Part] = []
        while len(token_ids(parts)) < 10:
            part = await call.read()
            assert isinstance(part, Part)
            parts.append(part)
        mesh.engines[0].faults.inject(dead=True)
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            while await call.read():
                pass
        assert lost.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert mesh.engines[1].load().running == 0
