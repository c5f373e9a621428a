"""What every Engine that takes LoRA adapters must do with them. One suite for all of them.

As `EngineContract`, with fixtures of `scope="module"`: `engine`, started, and `adapters`, what there is to load.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from model_server.engine import Engine, EngineError, EngineRefused, EngineRequest
from stoker.v1 import generation_pb2
from tests.contract.engine_contract import LENGTH, PROMPT, Whole, greedy, request_for, until, until_idle, whole


@dataclass(frozen=True)
class Sources:
    """`good`: two or more adapters that change the first token of the greedy output. `bad`: what cannot be loaded.
    `batch_invariant`: whether an output is the same in whatever company it runs."""

    good: Sequence[str]
    bad: Sequence[str] = ()
    batch_invariant: bool = True

    def alike(self, token_ids: list[int]) -> list[int]:
        """What of an output is the same in other company."""
        return token_ids if self.batch_invariant else token_ids[:1]


@asynccontextmanager
async def holding(engine: Engine, **sources: str) -> AsyncIterator[None]:
    """The engine, with these adapters."""
    for name, source in sources.items():
        await engine.add_adapter(name, source)
    try:
        yield
    finally:
        for name in sources:
            await engine.drop_adapter(name)


@pytest.mark.asyncio(loop_scope="module")
class AdapterContract:
    """The suite."""

    async def request(self, engine: Engine, adapter: str, max_tokens: int = 12, prompt: str = PROMPT) -> EngineRequest:
        prompt_token_ids = await engine.encode(generation_pb2.Generation(text=prompt))
        return replace(request_for(prompt_token_ids, greedy(), max_tokens), adapter=adapter)

    async def ask(self, engine: Engine, adapter: str = "", max_tokens: int = 12, prompt: str = PROMPT) -> Whole:
        return await whole(engine, await self.request(engine, adapter, max_tokens, prompt))

    async def refused(self, engine: Engine, adapter: str) -> None:
        with pytest.raises(EngineRefused) as caught:
            await self.ask(engine, adapter)
        assert caught.value.field == "lora_adapter"

    async def test_each_adapter_changes_the_answer_while_it_is_there(self, engine: Engine, adapters: Sources) -> None:
        plain = await self.ask(engine)
        await self.refused(engine, "one")
        first, second = adapters.good[:2]
        async with holding(engine, one=first, two=second):
            one, two = await self.ask(engine, "one"), await self.ask(engine, "two")
            assert len({tuple(each.token_ids) for each in (plain, one, two)}) == 3
            assert (await self.ask(engine, "one")).token_ids == one.token_ids
            assert (await self.ask(engine)).token_ids == plain.token_ids, "the model itself is what it was"
        await self.refused(engine, "one")
        async with holding(engine, one=first):
            assert (await self.ask(engine, "one")).token_ids == one.token_ids

    async def test_adapters_and_model_run_side_by_side(self, engine: Engine, adapters: Sources) -> None:
        async with holding(engine, one=adapters.good[0], two=adapters.good[1]):
            names = ["", "one", "two"]
            alone = [(await self.ask(engine, name, 8)).token_ids for name in names]
            together = await asyncio.gather(*(self.ask(engine, name, 8) for name in names * 2))
            assert len({ids[0] for ids in alone}) == 3
            assert [adapters.alike(each.token_ids) for each in together] == [adapters.alike(ids) for ids in alone * 2]

    async def test_streams_go_on_while_one_is_loaded_and_dropped(self, engine: Engine, adapters: Sources) -> None:
        request = await self.request(engine, "", 200)
        alone = await whole(engine, replace(request, request_id=f"{request.request_id}-alone"))
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(whole(engine, request))
            await until(lambda: engine.load().running > 0, "it runs", 5.0)
            async with holding(engine, one=adapters.good[0]):
                await self.ask(engine, "one", 2)
            assert not reading.done()
        assert adapters.alike(reading.result().token_ids) == adapters.alike(alone.token_ids)
        assert len(reading.result().token_ids) == 200
        assert reading.result().last.finish_reason == LENGTH

    async def test_what_is_cached_under_one_is_not_found_under_another(self, engine: Engine, adapters: Sources) -> None:
        prompt = " ".join(["the prompt that is asked for with and without"] * 40)
        async with holding(engine, one=adapters.good[0], two=adapters.good[1]):
            for name in ("", "one", "two"):
                first = await self.ask(engine, name, 2, prompt)
                assert first.outputs[0].cached_tokens == 0
                assert (await self.ask(engine, name, 2, prompt)).outputs[0].cached_tokens > 0

    async def test_outputs_go_on_under_their_adapter(self, engine: Engine, adapters: Sources) -> None:
        async with holding(engine, one=adapters.good[0]):
            alone = await self.ask(engine, "one", 10)
            plain = await self.ask(engine, max_tokens=10)
            for mode in engine.info.resume_modes:
                emitted = tuple(alone.token_ids[:4])
                request = await self.request(engine, "one", 10)
                resumed = await whole(engine, replace(request, emitted_token_ids=emitted, resume_mode=mode))
                assert resumed.token_ids[:4] == alone.token_ids[:4] and len(resumed.token_ids) == 10
                if mode in engine.info.exact_modes:
                    assert resumed.token_ids == alone.token_ids, mode
                assert resumed.token_ids[4:] != plain.token_ids[4:]

    async def test_no_more_than_it_has_room_for_and_none_twice(self, engine: Engine, adapters: Sources) -> None:
        good, most = adapters.good, engine.info.max_adapters
        assert most >= 2
        async with holding(engine, **{f"number-{n}": good[n % len(good)] for n in range(most)}):
            with pytest.raises(EngineError, match="max_adapters"):
                await engine.add_adapter("one-more", good[0])
            await self.refused(engine, "one-more")
        async with holding(engine, one=good[0]):
            with pytest.raises(EngineError, match="already"):
                await engine.add_adapter("one", good[0])
        with pytest.raises(EngineError):
            await engine.drop_adapter("one")

    async def test_one_that_is_in_use_stays(self, engine: Engine, adapters: Sources) -> None:
        async with holding(engine, one=adapters.good[0]):
            async with aclosing(engine.generate(await self.request(engine, "one", 200))) as outputs:
                await anext(outputs)
                with pytest.raises(EngineError):
                    await engine.drop_adapter("one")
                await anext(outputs)
            await until_idle(engine)

    async def test_what_cannot_be_loaded_is_said_and_leaves_the_engine_as_it_was(
        self, engine: Engine, adapters: Sources
    ) -> None:
        plain = await self.ask(engine)
        for source in adapters.bad:
            with pytest.raises(EngineError) as caught:
                await engine.add_adapter("bad", source)
            assert "bad" in str(caught.value)
            await self.refused(engine, "bad")
        await engine.check()
        assert (await self.ask(engine)).token_ids == plain.token_ids

    async def test_a_sleep_lets_go_of_all(self, engine: Engine, adapters: Sources) -> None:
        if not engine.info.sleeps:
            pytest.skip("it cannot sleep")
        await engine.add_adapter("one", adapters.good[0])
        before = await self.ask(engine, "one")
        await until_idle(engine)
        await engine.sleep()
        with pytest.raises(EngineError, match="sleeps"):
            await engine.add_adapter("two", adapters.good[1])
        await engine.wake()
        await self.refused(engine, "one")
        async with holding(engine, one=adapters.good[0]):
            assert (await self.ask(engine, "one")).token_ids == before.token_ids
