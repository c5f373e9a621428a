"""Moving models with the SDK and with `stoker models`, against real routers and simulated servers."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from discovery.memory import MemoryCatalog
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from model_server.residency.spec import AdapterSpec, ModelSpec
from model_server.server import ModelServer
from router.server import RouterServer
from stoker.v1 import endpoint_pb2
from stoker_client import Client, StokerError
from tests.fakes.fleet import QUICK, server_settings
from tests.fakes.mesh import router
from tests.fakes.until import until
from tests.integration.stoker_client.test_command import stoker

pytestmark = pytest.mark.integration

ZONE = "zone-a"
SIM = SimSettings(load_ms=300.0, sleep_ms=10.0, wake_ms=10.0, step_base_ms=2.0)
HOT, ASLEEP, STAGED = endpoint_pb2.RESIDENCY_HOT, endpoint_pb2.RESIDENCY_ASLEEP, endpoint_pb2.RESIDENCY_STAGED


@asynccontextmanager
async def mesh(*adapters: str) -> AsyncIterator[tuple[str, RouterServer]]:
    """A router before a server with `a` hot, `b` staged and these adapters of `a`."""
    catalog = MemoryCatalog((ZONE,))
    specs: list[ModelSpec | AdapterSpec] = [ModelSpec(name, partial(SimEngine, name, SIM)) for name in ("a", "b")]
    specs += [AdapterSpec(name, "a", f"/adapters/{name}") for name in adapters]
    async with AsyncExitStack() as held:
        server = ModelServer(server_settings(server_id="s", zone=ZONE), specs, catalog.registrar(ZONE, QUICK))
        await held.enter_async_context(server.running())
        up = await held.enter_async_context(router(catalog, ZONE))
        await until(lambda: len(up.fleet.snapshot.members) == 1)
        yield f"127.0.0.1:{up.port}", up


def residency(up: RouterServer, model: str) -> str:
    """Where the router sees the model."""
    (member,) = up.fleet.snapshot.members.values()
    state = member.endpoint.model(model)
    return state.residency.value if state is not None else ""


async def test_the_sdk_loads_sleeps_wakes_and_unloads() -> None:
    async with mesh() as (address, up), Client(address) as client:
        news = [progress async for progress in client.load_model("b")]
        assert news[-1].residency == HOT and news[0].residency == STAGED and len(news) > 1
        assert (await client.sleep_model("b", server="s", grace_s=1.0)).residency == ASLEEP
        await until(lambda: residency(up, "b") == "asleep")
        assert [progress async for progress in client.wake_model("b")][-1].residency == HOT
        assert (await client.unload_model("b")).residency == STAGED
        await until(lambda: residency(up, "b") == "staged")
        with pytest.raises(StokerError, match="sleeps nowhere"):
            async for _ in client.wake_model("b"):
                pass
        with pytest.raises(StokerError, match="no server has the model"):
            await client.unload_model("x")


async def test_a_cold_models_answer_comes_with_progress_before_it() -> None:
    async with mesh() as (address, _), Client(address) as client:
        chunks = [chunk async for chunk in client.stream("hello", model="b", max_tokens=3)]
        assert chunks[0].progress is not None and chunks[0].progress.server == "s"
        whole = await client.generate("hello", model="a", max_tokens=3)
        assert len(whole.token_ids) == 3


async def test_the_command_moves_models_and_says_how_far_they_are(tmp_path: Path) -> None:
    async with mesh() as (address, up):
        to = ("--router", address)
        loaded = await stoker(tmp_path, "models", "load", "b", *to)
        assert loaded.code == 0 and "hot on s" in loaded.out and "loading weights" in loaded.err
        slept = await stoker(tmp_path, "models", "sleep", "b", *to, "--grace", "1")
        assert "b is asleep, ready in" in slept.out
        await until(lambda: residency(up, "b") == "asleep")
        woken = await stoker(tmp_path, "models", "wake", "b", *to, "--json")
        lines = [json.loads(line) for line in woken.out.splitlines()]
        assert lines[-1]["residency"] == "RESIDENCY_HOT" and lines[0]["server"] == "s"
        unloaded = await stoker(tmp_path, "models", "unload", "b", "--server", "s", *to, "--json")
        assert json.loads(unloaded.out)["residency"] == "RESIDENCY_STAGED"
        listed = await stoker(tmp_path, "models", *to)
        assert "staged" in listed.out and "asleep" in listed.out
        wrong = await stoker(tmp_path, "models", "load", "x", *to)
        assert wrong.code == 1 and "no server has the model 'x'" in wrong.err


async def test_adapters_are_shown_with_their_base_and_moved_like_models(tmp_path: Path) -> None:
    async with mesh("tone") as (address, up), Client(address) as client:
        to = ("--router", address)
        loaded = await stoker(tmp_path, "models", "load", "tone", *to)
        assert loaded.code == 0 and "hot on s" in loaded.out and "loading the adapter" in loaded.err
        by_base = await client.generate("hello", model="a", lora_adapter="tone", max_tokens=4)
        assert by_base.token_ids == (await client.generate("hello", model="tone", max_tokens=4)).token_ids
        unloaded = await stoker(tmp_path, "models", "unload", "tone", *to)
        assert "tone is staged, ready in" in unloaded.out and " ms when it is asked for" in unloaded.out
        await until(lambda: residency(up, "tone") == "staged")
        listed = await stoker(tmp_path, "models", *to, "--json")
        shown = {each["model"]["name"]: each["model"]["base"] for each in json.loads(listed.out)["models"]}
        assert shown == {"a": "", "b": "", "tone": "a"}
        assert "base" in (await stoker(tmp_path, "models", *to)).out
        assert "tone of a staged" in (await stoker(tmp_path, "status", *to)).out
