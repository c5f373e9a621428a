"""The models of a server on simulated engines: readied once, room made in turn, nothing cut off."""

import asyncio
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest

from discovery.endpoint import Residency
from model_server.engine import EngineError
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from model_server.residency.move import Progress
from model_server.residency.room import Limits
from model_server.residency.spec import ModelSpec
from stoker_common.refusal import Code, Refusal
from tests.fakes import shelf as shelves
from tests.fakes.residency import measured
from tests.fakes.shelf import Shelf
from tests.fakes.until import until

pytestmark = pytest.mark.unit

SIM = SimSettings(load_ms=30.0, sleep_ms=5.0, wake_ms=5.0, step_base_ms=1.0)


def shelf(
    *names: str, sim: SimSettings = SIM, max_hot: int = 1, max_asleep: int = 4, share: float = 0.1
) -> AbstractAsyncContextManager[Shelf]:
    """Models that run."""
    return shelves.shelf(
        lambda make: [ModelSpec(name, partial(make, name), share) for name in names],
        sim,
        Limits(max_hot),
        max_asleep=max_asleep,
    )


async def test_the_first_ones_are_hot_at_first() -> None:
    async with shelf("a", "b", "c", max_hot=2) as up:
        assert up.where() == {"a": Residency.HOT, "b": Residency.HOT, "c": Residency.STAGED}
        assert [len(made) for made in up.engines.values()] == [1, 1, 0]


async def test_a_hundred_who_ask_for_a_cold_model_make_it_hot_once() -> None:
    async with shelf("a", "b") as up:
        told = await asyncio.gather(*(up.ask("b") for _ in range(100)))
        assert up.where() == {"a": Residency.ASLEEP, "b": Residency.HOT}
        assert (
            len(up.engines["b"]) == 1
            and up.count("stoker_server_model_loads_total", model="b", was="staged", outcome="ok") == 1
        )
        assert all(any(progress.activity == "loading weights" for progress in each) for each in told)
        assert up.count("stoker_server_model_evictions_total", model="a") == 1
        assert len(up.changes) > 2, "the catalog hears of it"


async def test_the_one_that_made_room_wakes_with_the_engine_it_had() -> None:
    async with shelf("a", "b") as up:
        await up.ask("b")
        told = await up.ask("a")
        assert up.where() == {"a": Residency.HOT, "b": Residency.ASLEEP}
        assert len(up.engines["a"]) == 1 and told[-1].activity != "loading weights"


async def test_an_engine_that_cannot_sleep_is_stopped_and_a_new_one_started() -> None:
    async with shelf("a", "b", sim=SIM.model_copy(update={"sleeps": False})) as up:
        await up.ask("b")
        assert up.where()["a"] is Residency.STAGED
        await up.ask("a")
        assert len(up.engines["a"]) == 2
        with pytest.raises(Exception, match="stopped"):
            await up.engines["a"][0].check()


async def test_steps_never_go_back_when_an_engine_is_replaced() -> None:
    async with shelf("a", "b", sim=SIM.model_copy(update={"sleeps": False})) as up:
        before = up.models.load().steps
        assert before > 0
        await up.ask("b")
        between = up.models.load().steps
        await up.ask("a")
        assert before < between < up.models.load().steps


async def test_more_asleep_than_the_host_holds_are_unloaded_least_recently_used_first() -> None:
    async with shelf("a", "b", "c", max_asleep=1) as up:
        for name in ("b", "c"):
            up.clock.advance(1.0)
            await up.ask(name)
        await until(lambda: up.where()["a"] is Residency.STAGED)
        assert up.where() == {"a": Residency.STAGED, "b": Residency.ASLEEP, "c": Residency.HOT}


async def test_what_runs_is_waited_for_and_never_cut_off() -> None:
    async with shelf("a", "b") as up:
        release, started = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with up.models.use(up.held("a"), None, _ignore):
                started.set()
                await release.wait()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hold())
            await started.wait()
            up.clock.advance(1e6)  # it was hot for long
            waiting = tasks.create_task(up.ask("b"))
            await until(lambda: up.where()["a"] is Residency.ASLEEP)  # for the catalog
            assert not up.held("a").hot and not waiting.done() and not up.engines["b"]
            release.set()
        assert up.where()["b"] is Residency.HOT


async def test_a_pin_holds_a_model_or_all_versions_of_it_and_goes_with_the_pin() -> None:
    async with shelf("chat@1", "b") as up:
        for names in (frozenset({"chat"}), frozenset({"chat@1", "unknown"})):
            up.models.pin(names)
            with pytest.raises(Refusal, match="pinned"):
                await up.ask("b")
        up.models.pin(frozenset({"chat@2"}))
        await up.ask("b")
        assert up.where() == {"chat@1": Residency.ASLEEP, "b": Residency.HOT}


async def test_with_no_room_it_is_refused_with_a_time_to_come_back() -> None:
    async with shelf("a", "b") as up:
        up.held("a").pinned = True
        with pytest.raises(Refusal) as refused:
            await up.ask("b")
        assert (refused.value.code, refused.value.reason) == (Code.RESOURCE_EXHAUSTED, "NO_ROOM")
        up.held("a").pinned = False
        await up.ask("b")


async def test_a_deadline_that_cannot_be_met_is_refused_once_the_time_is_known() -> None:
    async with shelf("a", "b") as up:
        measured(up.models, "b", Residency.STAGED, 60.0)
        with pytest.raises(Refusal) as refused:
            await up.ask("b", remaining_s=10.0)
        assert refused.value.reason == "READY_EXCEEDS_DEADLINE" and refused.value.retry_after_s == pytest.approx(60.0)
        await up.ask("b", remaining_s=100.0)


async def test_a_model_that_cannot_be_loaded_is_refused_for_a_while_and_hurts_no_other() -> None:
    async with shelf("a", "b", max_hot=2) as up:
        await up.models.put_away(up.held("b"), Residency.STAGED, None)
        broken = up.held("b").spec.make()
        await broken.stop()
        up.held("b").spec = ModelSpec("b", lambda: broken, 0.1)
        for _ in range(3):
            with pytest.raises(Refusal) as refused:
                await up.ask("b")
            assert refused.value.reason == "MODEL_FAILED" and (refused.value.retry_after_s or 0) > 1
        assert up.count("stoker_server_model_loads_total", model="b", was="staged", outcome="failed") == 1
        await up.ask("a")
        up.held("b").spec = ModelSpec("b", lambda: SimEngine("b", SIM), 0.1)
        up.clock.advance(6.0)
        await up.ask("b")


async def test_put_away_waits_for_the_grace_and_then_ends_what_runs() -> None:
    async with shelf("a") as up:
        started = asyncio.Event()

        async def hold() -> str:
            try:
                async with up.models.use(up.held("a"), None, _ignore):
                    started.set()
                    await asyncio.Event().wait()
            except Refusal as refusal:
                return refusal.reason
            return ""

        async with asyncio.TaskGroup() as tasks:
            holding = tasks.create_task(hold())
            await started.wait()
            await up.models.put_away(up.held("a"), Residency.ASLEEP, 0.02)
        assert holding.result() == "MODEL_LEAVING" and up.where()["a"] is Residency.ASLEEP
        await up.models.put_away(up.held("a"), Residency.ASLEEP, None)
        await up.models.put_away(up.held("a"), Residency.STAGED, None)
        assert up.where()["a"] is Residency.STAGED
        up.held("a").pinned = True
        with pytest.raises(Refusal) as refused:
            await up.models.put_away(up.held("a"), Residency.STAGED, None)
        assert refused.value.reason == "MODEL_PINNED"


async def test_an_engine_that_fails_at_sleep_is_dropped_and_nobody_else_hears_of_it() -> None:
    async with shelf("a", "b", max_hot=2) as up:

        async def broken() -> None:
            raise EngineError("no memory on the host")

        up.engines["b"][0].sleep = broken  # type: ignore[method-assign]
        with pytest.raises(Refusal, match="no memory on the host") as refused:
            await up.models.put_away(up.held("b"), Residency.ASLEEP, None)
        assert refused.value.reason == "MODEL_FAILED" and up.where()["b"] is Residency.STAGED
        await up.ask("a")
        await up.ask("b")
        assert len(up.engines["b"]) == 2


async def test_an_engine_that_dies_ends_the_watch() -> None:
    async with shelf("a", "b", max_hot=2) as up:
        up.engines["b"][0].faults.inject(dead=True)
        liveness = await asyncio.wait_for(asyncio.shield(up.running), 5.0)
        assert liveness.state.failed and "dead" in liveness.reason


async def _ignore(_: Progress) -> None:
    return
