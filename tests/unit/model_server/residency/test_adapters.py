"""LoRA adapters on simulated engines: hot with their base and never without it, no more than there is room for."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest

from discovery.endpoint import Residency
from model_server.engine import EngineError
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from model_server.residency.asked import asked
from model_server.residency.move import Progress
from model_server.residency.spec import AdapterSpec, ModelSpec
from stoker.v1.generation_pb2 import Generation
from stoker_common.refusal import Refusal
from tests.fakes import shelf as shelves
from tests.fakes.residency import measured
from tests.fakes.shelf import Shelf
from tests.fakes.until import until

pytestmark = pytest.mark.unit

SIM = SimSettings(load_ms=30.0, sleep_ms=5.0, wake_ms=5.0, step_base_ms=1.0, adapter_load_ms=10.0, max_adapters=2)
HOT, ASLEEP, STAGED, LISTED = Residency.HOT, Residency.ASLEEP, Residency.STAGED, Residency.LISTED


def shelf(*adapters: str, sim: SimSettings = SIM) -> AbstractAsyncContextManager[Shelf]:
    """Models `base` and `other` and these adapters of `base`; one model may be hot."""

    def specs(make: Callable[[str], SimEngine]) -> list[ModelSpec | AdapterSpec]:
        models = [ModelSpec(name, partial(make, name), 0.5, max_model_tokens=99) for name in ("base", "other")]
        return [*models, *(AdapterSpec(name, "base", f"/adapters/{name}") for name in adapters)]

    return shelves.shelf(specs, sim)


async def ask(up: Shelf, name: str) -> list[Progress]:
    """Use a model for a moment, some time before the next."""
    told = await up.ask(name)
    up.clock.advance(1.0)
    return told


def loads(up: Shelf, name: str, outcome: str = "ok") -> float:
    return up.count("stoker_server_model_loads_total", model=name, was="staged", outcome=outcome)


async def test_an_adapter_is_listed_with_its_base_and_loaded_when_it_is_asked_for() -> None:
    async with shelf("a") as up:
        assert up.where() == {"base": HOT, "other": STAGED, "a": STAGED}
        state = up.models.state(up.held("a"))
        assert (state.base, state.max_model_tokens) == ("base", SIM.max_model_tokens)
        await ask(up, "a")
        assert up.where() == {"base": HOT, "other": STAGED, "a": HOT}
        assert len(up.engines["base"]) == 1, "it has no engine of its own"


async def test_a_hundred_who_ask_at_once_load_it_once() -> None:
    async with shelf("a") as up:
        told = await asyncio.gather(*(ask(up, "a") for _ in range(100)))
        assert loads(up, "a") == 1.0
        assert all(any(progress.activity == "loading the adapter" for progress in each) for each in told)


async def test_an_adapter_of_a_cold_base_brings_its_base_along_in_one_move() -> None:
    async with shelf("a") as up:
        await ask(up, "other")
        assert up.where() == {"base": ASLEEP, "other": HOT, "a": STAGED}
        told = await asyncio.gather(*(ask(up, "a") for _ in range(10)))
        assert up.where() == {"base": HOT, "other": ASLEEP, "a": HOT}
        activities = {progress.activity for each in told for progress in each}
        assert {"waking", "loading the adapter"} <= activities
        assert loads(up, "a") == 1.0 and len(up.engines["base"]) == 1


@pytest.mark.parametrize("sleeps", [True, False])
async def test_it_goes_where_its_base_goes_and_is_loaded_again(sleeps: bool) -> None:
    async with shelf("a", sim=SIM.model_copy(update={"sleeps": sleeps})) as up:
        await ask(up, "a")
        await ask(up, "other")
        assert up.where()["a"] is STAGED and not up.held("a").hot
        await ask(up, "base")
        assert up.where()["a"] is STAGED, "the engine that wakes, or is new, has none"
        await ask(up, "a")
        assert up.where()["a"] is HOT and loads(up, "a") == 2.0


async def test_the_least_recently_used_makes_room_and_pinned_ones_and_models_stay() -> None:
    async with shelf("a", "b", "c") as up:
        for name in ("a", "b"):
            await ask(up, name)
        up.clock.advance(1000.0)
        await ask(up, "a")
        await ask(up, "c")
        assert up.where() == {"base": HOT, "other": STAGED, "a": HOT, "b": STAGED, "c": HOT}
        up.models.pin(frozenset({"a"}))
        up.clock.advance(1000.0)
        await ask(up, "c")
        await ask(up, "b")
        assert up.where() == {"base": HOT, "other": STAGED, "a": HOT, "b": HOT, "c": STAGED}
        with pytest.raises(Refusal, match="pinned"):
            await ask(up, "other")
        assert up.held("base").pinned, "what a pinned adapter stands on stays"
        up.models.pin(frozenset())
        assert not up.held("base").pinned


async def test_what_runs_on_an_adapter_is_waited_for_by_who_wants_its_place_or_its_bases() -> None:
    async with shelf("a", "b", "c") as up:
        release = asyncio.Event()

        async def hold_on(name: str, started: asyncio.Event) -> None:
            async with up.models.use(up.held(name), None, _ignore):
                started.set()
                await release.wait()

        async with asyncio.TaskGroup() as tasks:
            for name in ("a", "b"):
                started = asyncio.Event()
                tasks.create_task(hold_on(name, started))
                await started.wait()
            up.clock.advance(1e6)  # they were hot for long
            waiting = asyncio.ensure_future(ask(up, "c"))
            await until(lambda: not up.held("a").hot)
            other = tasks.create_task(ask(up, "other"))
            await until(lambda: not up.held("base").hot)
            assert not waiting.done() and not other.done() and not up.engines["other"]
            assert up.where()["b"] is STAGED, "for the catalog: it goes with its base"
            release.set()
        assert up.where()["other"] is HOT
        with pytest.raises(Refusal, match="'base' is on its way out"):
            await waiting


async def test_ready_in_is_its_own_time_where_its_base_is_hot_else_its_bases_and_its_own() -> None:
    async with shelf("a", "b") as up:
        measured(up.models, "a", STAGED, 0.25)
        measured(up.models, "base", ASLEEP, 2.0)
        assert up.models.state(up.held("a")).time_to_ready_ms == 250.0
        assert up.models.state(up.held("b")).time_to_ready_ms == 250.0, "never measured: as the others took"
        await up.models.put_away(up.held("base"), ASLEEP, None)
        assert up.models.state(up.held("base")).time_to_ready_ms == 2000.0
        # Two digits are written.
        assert up.models.state(up.held("a")).time_to_ready_ms == 2200.0


async def test_unload_drops_it_alone_and_sleep_is_an_unload() -> None:
    async with shelf("a") as up:
        for to in (STAGED, ASLEEP):
            await ask(up, "a")
            await up.models.put_away(up.held("a"), to, None)
            assert up.where() == {"base": HOT, "other": STAGED, "a": STAGED}


async def test_one_that_cannot_be_loaded_is_refused_for_a_while_and_its_base_serves_on() -> None:
    async with shelf("a") as up:

        async def broken(name: str, source: str) -> None:
            raise EngineError(f"no adapter in {source}")

        working, up.engines["base"][0].add_adapter = up.engines["base"][0].add_adapter, broken  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(Refusal, match="no adapter in /adapters/a") as refused:
                await ask(up, "a")
            assert refused.value.reason == "MODEL_FAILED"
        assert loads(up, "a", "failed") == 1.0
        await ask(up, "base")
        up.engines["base"][0].add_adapter = working  # type: ignore[method-assign]
        up.clock.advance(6.0)
        await ask(up, "a")


async def test_a_base_that_cannot_be_loaded_is_what_is_heard_of() -> None:
    async with shelf("a") as up:
        await ask(up, "other")
        up.engines["base"][0].faults.inject(dead=True)
        with pytest.raises(Refusal, match="'base'") as refused:
            await ask(up, "a")
        assert refused.value.reason == "MODEL_FAILED"
        assert up.where()["a"] is STAGED


async def test_nothing_counts_twice() -> None:
    async with shelf("a") as up:
        await ask(up, "a")
        assert up.models.load().steps == up.engines["base"][0].load().steps
        async with up.models.use(up.held("a"), None, _ignore) as held:
            meter = held.meter.begin(7)
            assert up.models.meters.waiting_prompt_tokens == 7
            meter.end()


async def test_either_spelling_asks_for_it_and_wrong_ones_are_told_apart() -> None:
    async with shelf("a") as up:
        for generation in (Generation(model="a"), Generation(model="base", lora_adapter="a")):
            assert asked(up.models, generation) is up.held("a")
        assert asked(up.models, Generation(model="base")) is up.held("base")
        for model, adapter, reason in (
            ("base", "x", "MODEL_NOT_FOUND"),
            ("base", "other", "INVALID_FIELD"),
            ("other", "a", "INVALID_FIELD"),
        ):
            with pytest.raises(Refusal) as refused:
                asked(up.models, Generation(model=model, lora_adapter=adapter))
            assert (refused.value.field, refused.value.reason) == ("generation.lora_adapter", reason)


async def _ignore(_: Progress) -> None:
    return
