"""What every Engine must do. One suite for all of them.

A test module derives a class `TestX(EngineContract)` and has three fixtures with `scope="module"` (where async, also
`loop_scope="module"`): `engine`, started, stopped afterwards; `capabilities`; and `kill`, which makes an engine die as
if by accident. The tests share the engine, in the order they stand here: the last one kills it.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest

from model_server.engine import (
    Engine,
    EngineDead,
    EngineError,
    EngineLoad,
    EngineOutput,
    EngineRefused,
    EngineRequest,
    ResumeMode,
)
from stoker.v1 import generation_pb2, inference_pb2
from tests.fakes.stopwatch import Stopwatch

NOT_ENDED = inference_pb2.FINISH_REASON_UNSPECIFIED
STOP = inference_pb2.FINISH_REASON_STOP
LENGTH = inference_pb2.FINISH_REASON_LENGTH

PROMPT = "The capital of France is"

Kill = Callable[[Engine], Awaitable[None]]


@dataclass(frozen=True)
class Capabilities:
    """What an engine under test can do beyond the least.

    `refused`: for each field that it cannot honour, as EngineRefused names it, a generation that asks for it.
    `ends_by_itself`: a generation whose greedy output reaches the model's end-of-text token, within 256 tokens.
    `resumes_exactly`: the modes after which an output, alone in the engine, is what it would have been, id by id.
    `split_characters`: a generation whose output has characters of several tokens each, within 64 tokens.
    `structured`: a generation of a JSON object in at most 64 tokens, if the engine does structured output.
    """

    prefix_cache: bool = True
    logprobs: bool = True
    # Whether lower priorities are served first, and the streams that fill the engine.
    priority: bool = True
    # Whether an output is the same in whatever company it runs.
    batch_invariant: bool = True
    concurrent_streams: int = 16
    tokens: int = 24
    death_timeout_s: float = 5.0
    refused: Mapping[str, generation_pb2.Generation] = field(default_factory=dict)
    ends_by_itself: generation_pb2.Generation | None = None
    resumes_exactly: frozenset[ResumeMode] = frozenset(ResumeMode)
    split_characters: generation_pb2.Generation | None = None
    structured: generation_pb2.Generation | None = None


@dataclass(frozen=True)
class Whole:
    """All outputs of one sequence, and what they add up to."""

    outputs: list[EngineOutput]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def token_ids(self) -> list[int]:
        return [token_id for output in self.outputs for token_id in output.token_ids]

    @property
    def logprobs(self) -> list[inference_pb2.TokenLogprobs]:
        return [logprobs for output in self.outputs for logprobs in output.logprobs]

    @property
    def last(self) -> EngineOutput:
        return self.outputs[-1]


def greedy() -> generation_pb2.Sampling:
    """Sampling that every engine repeats: greedy, and past the end of text."""
    return generation_pb2.Sampling(temperature=0, ignore_eos=True)


_requests = 0


def request_for(
    prompt_token_ids: list[int],
    sampling: generation_pb2.Sampling,
    max_tokens: int,
    *,
    salt: str = "",
    priority: int = 0,
) -> EngineRequest:
    """A request with an id of its own."""
    global _requests
    _requests += 1
    return EngineRequest(
        f"contract-{_requests}", tuple(prompt_token_ids), sampling, max_tokens, cache_salt=salt, priority=priority
    )


async def whole(engine: Engine, request: EngineRequest) -> Whole:
    """Generate to the end."""
    async with aclosing(engine.generate(request)) as outputs:
        return Whole([output async for output in outputs])


async def until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Wait for a condition that no event announces."""
    watch = Stopwatch()
    while not condition():
        assert watch.s < timeout_s, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.005)


async def until_idle(engine: Engine, timeout_s: float = 1.0) -> None:
    """Wait until nothing runs or waits in the engine."""
    await until(lambda: engine.load().running == 0 and engine.load().waiting == 0, f"idle: {engine.load()}", timeout_s)


async def read_on(engine: Engine, started: asyncio.Event) -> None:
    """Read an output as long as the context allows; `started` is set once it has begun."""
    prompt_token_ids = await engine.encode(generation_pb2.Generation(text=PROMPT))
    most = engine.info.max_model_tokens - len(prompt_token_ids)
    async with aclosing(engine.generate(request_for(prompt_token_ids, greedy(), most))) as outputs:
        async for _ in outputs:
            started.set()


@pytest.mark.contract
@pytest.mark.asyncio(loop_scope="module")
class EngineContract:
    """The suite."""

    async def ask(
        self,
        engine: Engine,
        sampling: generation_pb2.Sampling,
        max_tokens: int,
        *,
        prompt: str = PROMPT,
        salt: str = "",
    ) -> Whole:
        prompt_token_ids = await engine.encode(generation_pb2.Generation(text=prompt))
        return await whole(engine, request_for(prompt_token_ids, sampling, max_tokens, salt=salt))

    async def quiet(self, engine: Engine) -> EngineLoad:
        """The load once steps have ceased: an engine may make one more after its last stream has ended."""
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            before = engine.load()
            # That nothing happens has no event to wait for.
            await asyncio.sleep(0.1)
            if engine.load().steps == before.steps:
                return before
        raise AssertionError(f"steps go on without streams: {engine.load()}")

    async def test_info_says_what_the_engine_is(self, engine: Engine) -> None:
        info = engine.info
        for name in ("engine", "version", "model", "accelerator", "numerics_class"):
            assert getattr(info, name), f"{name} is empty"
        for name in ("max_model_tokens", "vocabulary", "max_streams", "kv_tokens", "block_tokens"):
            assert getattr(info, name) > 0, f"{name} is not positive"
        assert info.accelerator_count >= 0
        assert info.accelerator_memory_bytes >= 0
        await engine.check()

    async def test_encodes_text_ids_and_chat(self, engine: Engine) -> None:
        generation = generation_pb2.Generation
        from_text = await engine.encode(generation(text=PROMPT))
        assert from_text
        assert from_text == await engine.encode(generation(text=PROMPT))
        assert all(0 <= token_id < engine.info.vocabulary for token_id in from_text)
        assert await engine.encode(generation(token_ids=generation_pb2.TokenIds(ids=from_text))) == from_text

        said = generation_pb2.ContentPart(text=PROMPT)
        chat = generation_pb2.Chat(messages=[generation_pb2.ChatMessage(role="user", content=[said])])
        rendered = await engine.encode(generation(chat=chat))
        assert len(rendered) > len(from_text)
        unopened = generation_pb2.Chat(messages=chat.messages, add_generation_prompt=False)
        without_turn = await engine.encode(generation(chat=unopened))
        assert rendered[: len(without_turn)] == without_turn
        assert len(rendered) > len(without_turn)

        with pytest.raises(EngineRefused) as refusal:
            await engine.encode(generation(token_ids=generation_pb2.TokenIds()))
        assert refusal.value.field == "token_ids"

    async def test_same_request_gives_same_tokens(self, engine: Engine, capabilities: Capabilities) -> None:
        first = await self.ask(engine, greedy(), capabilities.tokens)
        second = await self.ask(engine, greedy(), capabilities.tokens)
        assert first.token_ids == second.token_ids
        assert first.text == second.text
        assert first.text

    async def test_ends_by_length_once_and_last(self, engine: Engine, capabilities: Capabilities) -> None:
        answer = await self.ask(engine, greedy(), capabilities.tokens)
        assert len(answer.token_ids) == capabilities.tokens
        assert [output.finish_reason for output in answer.outputs[:-1]] == [NOT_ENDED] * (len(answer.outputs) - 1)
        assert answer.last.finish_reason == LENGTH
        assert answer.last.stop_string is None
        assert answer.last.stop_token_id is None
        assert len(answer.outputs) > 1, "nothing was streamed"

    async def test_a_shorter_output_begins_the_longer_one(self, engine: Engine, capabilities: Capabilities) -> None:
        longer = await self.ask(engine, greedy(), capabilities.tokens)
        shorter = await self.ask(engine, greedy(), capabilities.tokens // 2)
        assert longer.token_ids[: capabilities.tokens // 2] == shorter.token_ids
        assert longer.text.startswith(shorter.text)

    async def test_stop_strings_end_the_output_wherever_tokens_meet(
        self, engine: Engine, capabilities: Capabilities
    ) -> None:
        reference = await self.ask(engine, greedy(), capabilities.tokens)
        offset = 0
        seams: list[int] = []
        for output in reference.outputs[:-1]:
            offset += len(output.text)
            if output.text and 2 <= offset <= len(reference.text) - 2:
                seams.append(offset)
        assert seams
        # A few of them: each is a generation.
        for seam in seams[:: max(1, len(seams) // 4)]:
            stop = reference.text[seam - 2 : seam + 2]
            start = reference.text.index(stop)
            sampling = greedy()
            sampling.stop.extend(["this does not occur", stop])
            stopped = await self.ask(engine, sampling, capabilities.tokens)
            assert stopped.text == reference.text[:start]
            assert stopped.last.finish_reason == STOP
            assert stopped.last.stop_string == stop
            assert stopped.token_ids == reference.token_ids[: len(stopped.token_ids)]

            sampling.include_stop_str_in_output = True
            including = await self.ask(engine, sampling, capabilities.tokens)
            assert including.text == reference.text[: start + len(stop)]
            assert including.token_ids == stopped.token_ids

    async def test_a_stop_string_that_never_comes_holds_nothing_back_at_the_end(
        self, engine: Engine, capabilities: Capabilities
    ) -> None:
        reference = await self.ask(engine, greedy(), capabilities.tokens)
        sampling = greedy()
        sampling.stop.append(reference.text[-3:] + "\x00")
        answer = await self.ask(engine, sampling, capabilities.tokens)
        assert answer.text == reference.text
        assert answer.last.finish_reason == LENGTH

    async def test_stop_tokens_end_the_output(self, engine: Engine, capabilities: Capabilities) -> None:
        reference = await self.ask(engine, greedy(), capabilities.tokens)
        stop_token_id = reference.token_ids[capabilities.tokens // 2]
        place = reference.token_ids.index(stop_token_id)
        sampling = greedy()
        sampling.stop_token_ids.append(stop_token_id)
        stopped = await self.ask(engine, sampling, capabilities.tokens)
        assert stopped.token_ids == reference.token_ids[: place + 1]
        assert stopped.last.finish_reason == STOP
        assert stopped.last.stop_token_id == stop_token_id
        assert stopped.last.stop_string is None
        assert reference.text.startswith(stopped.text)

        sampling.min_tokens = place + 2
        longer = await self.ask(engine, sampling, capabilities.tokens)
        assert len(longer.token_ids) >= place + 2

    async def test_ends_at_the_end_of_text(self, engine: Engine, capabilities: Capabilities) -> None:
        generation = capabilities.ends_by_itself
        if generation is None:
            pytest.skip("no prompt is known whose output ends by itself")
        prompt_token_ids = await engine.encode(generation)
        answer = await whole(engine, request_for(prompt_token_ids, generation.sampling, 256))
        assert answer.last.finish_reason == STOP
        assert answer.last.stop_string is None
        assert answer.last.stop_token_id is None
        assert 1 <= len(answer.token_ids) < 256

    async def test_logprobs_tell_of_every_token(self, engine: Engine, capabilities: Capabilities) -> None:
        if not capabilities.logprobs:
            pytest.skip("no logprobs")
        for top in (0, 3):
            sampling = greedy()
            sampling.logprobs = top
            answer = await self.ask(engine, sampling, 6)
            assert [logprobs.token.token_id for logprobs in answer.logprobs] == answer.token_ids
            for logprobs in answer.logprobs:
                assert logprobs.token.rank >= 1
                assert logprobs.token.logprob <= 0
                assert len(logprobs.top) == top
                likeliest = [entry.logprob for entry in logprobs.top]
                assert likeliest == sorted(likeliest, reverse=True)
                assert len({entry.token_id for entry in logprobs.top}) == top
                assert sum(math.exp(entry) for entry in likeliest) <= 1.001
        assert not (await self.ask(engine, greedy(), 2)).logprobs

    async def test_refusals_name_the_field(self, engine: Engine, capabilities: Capabilities) -> None:
        for name, generation in capabilities.refused.items():
            generation.text = PROMPT
            structured = generation.structured_output if generation.HasField("structured_output") else None
            with pytest.raises(EngineRefused) as refusal:
                prompt_token_ids = await engine.encode(generation)
                request = EngineRequest(
                    f"refused-{name}", tuple(prompt_token_ids), generation.sampling, 4, structured_output=structured
                )
                await whole(engine, request)
            assert refusal.value.field == name
            assert refusal.value.unsupported
            assert str(refusal.value)
        await until_idle(engine)

    async def test_many_streams_at_once_all_end(self, engine: Engine, capabilities: Capabilities) -> None:
        prompts = [f"{PROMPT} {number}" for number in range(capabilities.concurrent_streams)]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.ask(engine, greedy(), capabilities.tokens, prompt=prompt)) for prompt in prompts
            ]
        for task in tasks:
            assert len(task.result().token_ids) == capabilities.tokens
            assert task.result().last.finish_reason == LENGTH
        if capabilities.batch_invariant:
            alone = await self.ask(engine, greedy(), capabilities.tokens, prompt=prompts[0])
            assert tasks[0].result().token_ids == alone.token_ids
        await until_idle(engine)

    async def test_cached_tokens_grow_and_salts_separate_them(self, engine: Engine, capabilities: Capabilities) -> None:
        if not capabilities.prefix_cache:
            pytest.skip("no prefix cache")
        block_tokens = engine.info.block_tokens
        once = await engine.encode(generation_pb2.Generation(text="A prompt that nothing else here asks. "))
        prompt_token_ids = (once * block_tokens)[: 4 * block_tokens + 1]

        async def cached(salt: str) -> int:
            answer = await whole(engine, request_for(prompt_token_ids, greedy(), 2, salt=salt))
            return answer.outputs[0].cached_tokens

        assert await cached("a") == 0
        assert block_tokens <= await cached("a") < len(prompt_token_ids)
        assert await cached("b") == 0
        assert await cached("") == 0
        assert await cached("") > 0

    async def test_load_follows_the_work(self, engine: Engine, capabilities: Capabilities) -> None:
        await until_idle(engine)
        before = await self.quiet(engine)

        prompt_token_ids = await engine.encode(generation_pb2.Generation(text=PROMPT))
        async with aclosing(engine.generate(request_for(prompt_token_ids, greedy(), capabilities.tokens))) as outputs:
            first = await anext(outputs)
            await until(lambda: engine.load().running == 1, "one stream runs", 1.0)
            during = engine.load()
            assert during.waiting == 0
            assert 0 < during.kv_usage <= 1
            assert during.steps > before.steps
            answer = Whole([first, *[output async for output in outputs]])
        assert len(answer.token_ids) == capabilities.tokens
        await until_idle(engine)
        assert engine.load().steps > during.steps

    async def test_closing_a_generation_frees_the_engine(self, engine: Engine) -> None:
        prompt_token_ids = await engine.encode(generation_pb2.Generation(text=PROMPT))
        most = engine.info.max_model_tokens - len(prompt_token_ids)
        outputs = engine.generate(request_for(prompt_token_ids, greedy(), most))
        await anext(outputs)
        await outputs.aclose()
        await until_idle(engine)

    async def test_cancelling_the_reader_frees_the_engine(self, engine: Engine) -> None:
        started = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(read_on(engine, started))
            await started.wait()
            reader.cancel()
        await until_idle(engine)

    async def test_what_is_handed_over_is_what_is_generated(self, engine: Engine, capabilities: Capabilities) -> None:
        prompt_token_ids = await engine.encode(generation_pb2.Generation(text=PROMPT))
        got: list[EngineOutput] = []
        await engine.run(request_for(prompt_token_ids, greedy(), capabilities.tokens), got.append)
        answer = await whole(engine, request_for(prompt_token_ids, greedy(), capabilities.tokens))
        assert Whole(got).token_ids == answer.token_ids and Whole(got).text == answer.text
        assert [bool(output.finish_reason) for output in got] == [False] * (len(got) - 1) + [True]

    async def test_cancelling_a_run_frees_the_engine_and_hands_nothing_more_over(self, engine: Engine) -> None:
        prompt_token_ids = await engine.encode(generation_pb2.Generation(text=PROMPT))
        most = engine.info.max_model_tokens - len(prompt_token_ids)
        got: list[EngineOutput] = []
        running = asyncio.ensure_future(engine.run(request_for(prompt_token_ids, greedy(), most), got.append))
        await until(lambda: len(got) >= 2, "two outputs", 5.0)
        running.cancel()
        await asyncio.wait((running,))
        came = len(got)
        assert running.cancelled()
        await until_idle(engine)
        assert len(got) == came

    async def test_what_a_taker_raises_ends_its_own_sequence(self, engine: Engine, capabilities: Capabilities) -> None:
        prompt_token_ids = await engine.encode(generation_pb2.Generation(text=PROMPT))
        most = engine.info.max_model_tokens - len(prompt_token_ids)
        for room in (0, 1):
            taken: list[EngineOutput] = []

            def take(output: EngineOutput, room: int = room, taken: list[EngineOutput] = taken) -> None:
                if len(taken) == room:
                    raise BufferError
                taken.append(output)

            other = asyncio.ensure_future(whole(engine, request_for(prompt_token_ids, greedy(), capabilities.tokens)))
            with pytest.raises(BufferError):
                await engine.run(request_for(prompt_token_ids, greedy(), most), take)
            assert len(taken) == room
            assert len((await other).token_ids) == capabilities.tokens
        await until_idle(engine)

    async def test_lower_priorities_come_first(self, engine: Engine, capabilities: Capabilities) -> None:
        if not capabilities.priority:
            pytest.skip("no priorities")
        prompt_token_ids = await engine.encode(generation_pb2.Generation(text=PROMPT))
        most = engine.info.max_model_tokens - len(prompt_token_ids)
        order: list[int] = []

        async def fill() -> None:
            async with aclosing(engine.generate(request_for(prompt_token_ids, greedy(), most))) as outputs:
                async for _ in outputs:
                    pass

        async def follow(priority: int) -> None:
            await whole(engine, request_for(prompt_token_ids, greedy(), 2, priority=priority))
            order.append(priority)

        async with asyncio.TaskGroup() as group:
            fillers = [group.create_task(fill()) for _ in range(engine.info.max_streams)]
            await until(lambda: engine.load().running == len(fillers), "the engine is full", 5.0)
            followers = [group.create_task(follow(priority)) for priority in (7, 3, 5)]
            await until(lambda: engine.load().waiting == len(followers), "three wait", 5.0)
            fillers.pop().cancel()
            await asyncio.wait(followers)
            for filler in fillers:
                filler.cancel()
        assert order == [3, 5, 7]
        await until_idle(engine)

    async def test_sleeps_and_wakes_with_the_same_answers_and_an_empty_cache(self, engine: Engine) -> None:
        if not engine.info.sleeps:
            with pytest.raises(EngineError):
                await engine.sleep()
            await engine.check()
            return
        prompt = " ".join(["one and the same long beginning"] * 40)
        before = await self.ask(engine, greedy(), 8, prompt=prompt)
        with pytest.raises(EngineError):
            await engine.wake()
        async with aclosing(engine.generate(request_for([1, 2, 3], greedy(), 1000))) as outputs:
            await anext(outputs)
            with pytest.raises(EngineError):
                await engine.sleep()
        await until_idle(engine)
        for _ in range(2):
            await engine.sleep()
            await engine.check()
            with pytest.raises(EngineError):
                await engine.sleep()
            with pytest.raises(EngineError):
                await whole(engine, request_for([1, 2, 3], greedy(), 2))
            await engine.wake()
            after = await self.ask(engine, greedy(), 8, prompt=prompt)
            assert after.token_ids == before.token_ids
            assert after.outputs[0].cached_tokens == 0, "what is cached is gone after a sleep"
        await until_idle(engine)

    async def test_death_fails_the_streams_and_stop_ends_it_all(
        self, engine: Engine, capabilities: Capabilities, kill: Kill
    ) -> None:
        """The last test: nothing after it has an engine."""
        prompt_token_ids = await engine.encode(generation_pb2.Generation(text=PROMPT))
        started = asyncio.Event()
        with pytest.raises(ExceptionGroup) as group_failed:
            async with asyncio.timeout(capabilities.death_timeout_s), asyncio.TaskGroup() as group:
                group.create_task(read_on(engine, started))
                await started.wait()
                await kill(engine)
        assert group_failed.group_contains(EngineDead, depth=1)

        with pytest.raises(EngineDead):
            await engine.check()
        with pytest.raises(EngineDead):
            await whole(engine, request_for(prompt_token_ids, greedy(), 2))
        await engine.stop()
        await engine.stop()
        with pytest.raises(EngineDead):
            await whole(engine, request_for(prompt_token_ids, greedy(), 2))
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "no task is left", 5.0)
