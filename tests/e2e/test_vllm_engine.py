"""The vLLM engine with a real model on the CPU: one engine for all of the module's tests, on the module's loop."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from model_server.engine import Engine, EngineOutput, EngineRefused, EngineRequest, ResumeMode
from model_server.engines.vllm_settings import VllmSettings, environment
from stoker.v1 import generation_pb2, inference_pb2
from tests.contract.engine_contract import Capabilities, EngineContract, Kill
from tests.contract.resume_contract import ResumeContract
from tests.fakes.stopwatch import Stopwatch
from tests.fakes.until import until

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache/models/SmolLM2-135M-Instruct"
PROMPT = "The capital of France is"
# The three tokens of one parrot, in SmolLM2's vocabulary. Asked to choose among them, it draws parrots.
PARROT = [10813, 116, 246]
END_OF_TEXT = 2
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "size": {"enum": ["small", "large"]}},
    "required": ["city", "size"],
}
GREEDY = generation_pb2.Sampling(temperature=0.0)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
    # What vLLM and its libraries warn of is theirs.
    pytest.mark.filterwarnings("ignore"),
]


class Runner:
    """Runs prompts on an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ids = count()

    async def prompt(self, text: str = PROMPT) -> tuple[int, ...]:
        return tuple(await self.engine.encode(generation_pb2.Generation(text=text)))

    def request(self, prompt: tuple[int, ...], sampling: generation_pb2.Sampling, **more: Any) -> EngineRequest:
        more.setdefault("max_tokens", 12)
        return EngineRequest(f"request-{next(self._ids)}", prompt, sampling, **more)

    async def outputs(
        self, sampling: generation_pb2.Sampling, prompt: tuple[int, ...] | None = None, **more: Any
    ) -> list[EngineOutput]:
        request = self.request(prompt or await self.prompt(), sampling, **more)
        return [output async for output in self.engine.generate(request)]

    async def text(self, sampling: generation_pb2.Sampling, **more: Any) -> str:
        return text_of(await self.outputs(sampling, **more))

    async def refused(self, sampling: generation_pb2.Sampling, **more: Any) -> EngineRefused:
        with pytest.raises(EngineRefused) as caught:
            await self.outputs(sampling, **more)
        return caught.value


def text_of(outputs: list[EngineOutput]) -> str:
    return "".join(output.text for output in outputs)


def ids_of(outputs: list[EngineOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def question(text: str) -> generation_pb2.Chat:
    said = generation_pb2.ContentPart(text=text)
    return generation_pb2.Chat(messages=[generation_pb2.ChatMessage(role="user", content=[said])])


def engine_processes() -> list[psutil.Process]:
    """This process's children but for multiprocessing's own helper, which lives as long as the process."""
    children = psutil.Process().children(recursive=True)
    return [p for p in children if "resource_tracker" not in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def settings() -> Iterator[VllmSettings]:
    if not (MODEL / "model.safetensors").exists():
        pytest.fail(f"no model in {MODEL}: run `make model`")
    # What a CPU has anyway: on a GPU the tests are the same.
    made = VllmSettings(
        model=str(MODEL),
        max_model_len=2048,
        max_num_seqs=16,
        max_num_batched_tokens=512,
        block_size=32,
        kv_cache_memory_bytes=256 << 20,
        enforce_eager=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(made, os.environ).items():
            patch.setenv(key, value)
        # vLLM takes larger steps in parts, and lets the loop run between them. By default a part is 128 outputs.
        patch.setenv("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "3")
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(settings: VllmSettings) -> AsyncIterator[Engine]:
    from model_server.engines.vllm_engine import VllmEngine

    made = VllmEngine(settings)
    await made.start()
    yield made
    await made.stop()
    assert not engine_processes(), "a stopped engine left processes behind"


@pytest.fixture(scope="module")
def run(engine: Engine) -> Runner:
    return Runner(engine)


@pytest.fixture(scope="module")
def capabilities() -> Capabilities:
    sampling, form = generation_pb2.Sampling, generation_pb2.StructuredOutput
    # Which prompts end by themselves depends on how a processor rounds: with AMX other ones than without. Nothing but
    # the end is likelier once it is allowed.
    ends = generation_pb2.Generation(
        chat=question("What is the capital of France?"),
        sampling=sampling(temperature=0, min_tokens=5, logit_bias={END_OF_TEXT: 100.0}),
    )
    refused = {
        "sampling.thinking_token_budget": generation_pb2.Generation(sampling=sampling(thinking_token_budget=5)),
        "structured_output.whitespace_pattern": generation_pb2.Generation(
            structured_output=form(json_object=generation_pb2.JsonObject(), whitespace_pattern=" ")
        ),
    }
    # In bf16, what runs beside a stream may round it another way. Loaded cores need long for a first token.
    return Capabilities(
        batch_invariant=False,
        concurrent_streams=8,
        tokens=12,
        refused=refused,
        ends_by_itself=ends,
        death_timeout_s=10.0,
        # A prefill rounds otherwise than decoding does.
        resumes_exactly=frozenset({ResumeMode.REPLAY}),
        split_characters=generation_pb2.Generation(
            text="🦜" * 6, sampling=sampling(temperature=0, ignore_eos=True, allowed_token_ids=PARROT)
        ),
        structured=generation_pb2.Generation(
            text="A city, as JSON: ", sampling=GREEDY, structured_output=form(json_schema=json.dumps(CITY))
        ),
    )


@pytest.fixture(scope="module")
def kill() -> Kill:
    async def kill_processes(_: Engine) -> None:
        for process in engine_processes():
            process.kill()

    return kill_processes


async def test_a_real_answer(run: Runner) -> None:
    outputs = await run.outputs(GREEDY)
    assert "Paris" in text_of(outputs)
    assert len(ids_of(outputs)) == 12
    assert outputs[-1].finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert all(output.finish_reason == inference_pb2.FINISH_REASON_UNSPECIFIED for output in outputs[:-1])
    assert outputs[0].queue_ms is not None and outputs[0].prefill_ms is not None
    assert outputs[0].prefill_ms > 0.0


async def test_every_kind_that_is_warmed_up_is_one_that_it_takes(run: Runner) -> None:
    from model_server.engines.vllm_warmup import warm_up

    assert await warm_up(run.engine) == ()


async def test_info_is_the_engines_own(run: Runner) -> None:
    info = run.engine.info
    assert (info.engine, info.model) == ("vllm", MODEL.name)
    assert (info.max_model_tokens, info.max_streams, info.block_tokens) == (2048, 16, 32)
    assert info.vocabulary == 49152
    assert info.kv_tokens >= info.max_model_tokens
    for part in ("vllm=", "device=", "dtype=bfloat16", "quant=none", "tp=1", "attention="):
        assert part in info.numerics_class


async def test_chat_uses_the_models_template(run: Runner) -> None:
    asked = "What is the capital of France?"
    prompt = await run.engine.encode(generation_pb2.Generation(chat=question(asked)))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], add_generation_prompt=True, tokenize=False
    )
    assert tokenizer.decode(prompt) == text
    assert text.endswith("<|im_start|>assistant\n")


async def test_a_seed_repeats_and_another_differs(run: Runner) -> None:
    sampling = generation_pb2.Sampling(temperature=1.5, seed=7)
    first, second = await run.text(sampling), await run.text(sampling)
    assert first == second
    assert first != await run.text(generation_pb2.Sampling(temperature=1.5, seed=8))
    minus_one = generation_pb2.Sampling(temperature=1.5, seed=-1)
    assert await run.text(minus_one) == await run.text(minus_one)


async def test_json_schema_is_obeyed(run: Runner) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "size": {"enum": ["small", "large"]}},
        "required": ["city", "size"],
    }
    form = generation_pb2.StructuredOutput(json_schema=json.dumps(schema), disable_additional_properties=True)
    answer = json.loads(await run.text(GREEDY, structured_output=form, max_tokens=80))
    assert answer.keys() == {"city", "size"}
    assert answer["size"] in ("small", "large")


@pytest.mark.parametrize(
    ("form", "allowed"),
    [
        (generation_pb2.StructuredOutput(choice=generation_pb2.Choice(values=["north", "south"])), ["north", "south"]),
        (generation_pb2.StructuredOutput(regex="[ab]{3}x"), [f"{a}{b}{c}x" for a in "ab" for b in "ab" for c in "ab"]),
        (generation_pb2.StructuredOutput(grammar='root ::= "yes" | "no"'), ["yes", "no"]),
    ],
    ids=["choice", "regex", "grammar"],
)
async def test_forms_are_obeyed(run: Runner, form: generation_pb2.StructuredOutput, allowed: list[str]) -> None:
    assert await run.text(GREEDY, structured_output=form) in allowed


async def test_bias_allowed_ids_and_bad_words_bend_the_output(run: Runner) -> None:
    paris = ids_of(await run.outputs(GREEDY, max_tokens=1))[0]
    other = paris + 1
    biased = generation_pb2.Sampling(temperature=0.0, logit_bias={other: 100.0})
    assert ids_of(await run.outputs(biased, max_tokens=3)) == [other] * 3
    allowed = generation_pb2.Sampling(temperature=0.0, allowed_token_ids=[40, 41])
    assert set(ids_of(await run.outputs(allowed))) <= {40, 41}
    assert "Paris" not in await run.text(generation_pb2.Sampling(temperature=0.0, bad_words=["Paris"]))


async def test_penalties_keep_it_from_repeating(run: Runner) -> None:
    prompt = await run.prompt("one two one two one two one two one two")
    plain = set(ids_of(await run.outputs(generation_pb2.Sampling(temperature=0.0, ignore_eos=True), prompt)))
    assert len(plain) <= 4, "the prompt should have the model repeat itself"
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 5.0}):
        sampling = generation_pb2.Sampling(temperature=0.0, ignore_eos=True, **penalty)  # type: ignore[arg-type]
        assert len(set(ids_of(await run.outputs(sampling, prompt)))) > len(plain), penalty


async def test_stops_end_the_output_and_say_which(run: Runner) -> None:
    outputs = await run.outputs(generation_pb2.Sampling(temperature=0.0, stop=["Par"]))
    assert "Par" not in text_of(outputs)
    assert (outputs[-1].finish_reason, outputs[-1].stop_string) == (inference_pb2.FINISH_REASON_STOP, "Par")
    paris = ids_of(await run.outputs(GREEDY, max_tokens=1))[0]
    outputs = await run.outputs(generation_pb2.Sampling(temperature=0.0, stop_token_ids=[paris]))
    assert (len(ids_of(outputs)), outputs[-1].stop_token_id) == (1, paris)
    kept = generation_pb2.Sampling(temperature=0.0, stop=["Par"], include_stop_str_in_output=True)
    assert (await run.text(kept)).endswith("Par")


async def test_logprobs_are_the_likeliest_first(run: Runner) -> None:
    outputs = await run.outputs(generation_pb2.Sampling(temperature=0.0, logprobs=3, prompt_logprobs=2), max_tokens=2)
    places = [place for output in outputs for place in output.logprobs]
    assert [place.token.token_id for place in places] == ids_of(outputs)
    for place in places:
        assert [entry.rank for entry in place.top] == [1, 2, 3]
        assert place.top[0].token_id == place.token.token_id  # Greedy.
        assert 0.0 >= place.top[0].logprob >= place.top[1].logprob >= place.top[2].logprob
    prompt = await run.prompt()
    told = [place for output in outputs for place in output.prompt_logprobs]
    assert [place.token.token_id for place in told] == list(prompt[1:])
    assert all(len(place.top) == 2 for place in told)
    later = generation_pb2.Sampling(temperature=0.0, prompt_logprobs=0, prompt_logprob_start=3)
    outputs = await run.outputs(later, max_tokens=1)
    assert [place.token.token_id for place in outputs[0].prompt_logprobs] == list(prompt[3:])


async def test_listed_ids_get_their_logprobs(run: Runner) -> None:
    outputs = await run.outputs(generation_pb2.Sampling(temperature=0.0, logprob_token_ids=[5, 9]), max_tokens=1)
    assert [entry.token_id for entry in outputs[0].logprobs[0].top] == [5, 9]
    assert outputs[0].logprobs[0].token.logprob > outputs[0].logprobs[0].top[0].logprob


async def test_a_prompt_seen_before_is_cached_unless_salted(run: Runner) -> None:
    prompt = await run.prompt("Once upon a time there was a lighthouse keeper. " * 12)
    again = [(await run.outputs(GREEDY, prompt, max_tokens=1))[0].cached_tokens for _ in range(2)]
    assert again[0] == 0
    assert again[1] >= len(prompt) - 2 * run.engine.info.block_tokens
    salted = await run.outputs(GREEDY, prompt, max_tokens=1, cache_salt="another tenant")
    assert salted[0].cached_tokens == 0
    anew = generation_pb2.Sampling(temperature=0.0, skip_reading_prefix_cache=True)
    assert (await run.outputs(anew, prompt, max_tokens=1))[0].cached_tokens == 0


async def test_closing_a_stream_aborts_it_at_once(run: Runner) -> None:
    prompt = await run.prompt()
    sampling = generation_pb2.Sampling(temperature=0.0, ignore_eos=True)
    streams = [run.engine.generate(run.request(prompt, sampling, max_tokens=1000)) for _ in range(3)]
    for stream in streams:
        await anext(stream)
    assert run.engine.load().running > 0
    watch = Stopwatch()
    for stream in streams:
        await stream.aclose()
    # The engine core has let go of them too: a stream that comes now is alone in its steps.
    alone = run.engine.generate(run.request(prompt, sampling, max_tokens=1000))
    try:
        async for _ in alone:
            if run.engine.load().running == 1:
                break
    finally:
        await alone.aclose()
    assert watch.s < 1.0
    assert run.engine.load().running == 0


async def test_all_that_a_step_brought_is_handed_over_in_one_turn_of_the_loop(run: Runner) -> None:
    """The contract test of vllm_tap: vLLM takes these steps in three parts, with turns of the loop between them."""
    prompt, streams = await run.prompt(), 8
    sampling = generation_pb2.Sampling(temperature=0.0, ignore_eos=True)
    loop = asyncio.get_running_loop()
    turn = 0
    reading = True
    came: dict[int, set[int]] = {}
    largest: dict[int, int] = {}

    def count_turns() -> None:
        nonlocal turn
        turn += 1
        if reading:
            loop.call_soon(count_turns)

    async def read() -> None:
        async for _ in run.engine.generate(run.request(prompt, sampling, max_tokens=32)):
            step = run.engine.load().steps
            came.setdefault(step, set()).add(turn)
            largest[step] = largest.get(step, 0) + 1

    count_turns()
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(streams):
                tasks.create_task(read())
    finally:
        reading = False
    assert max(largest.values()) == streams
    assert {step: turns for step, turns in came.items() if len(turns) > 1} == {}


async def test_lower_priority_numbers_go_first_and_equals_in_order(run: Runner) -> None:
    """The batch is full but for one place, which those who wait have one after the other."""
    prompt = await run.prompt()
    endless = generation_pb2.Sampling(temperature=0.0, ignore_eos=True)
    begun: list[str] = []

    async def use(tokens: int, priority: int, name: str) -> None:
        async for _ in run.engine.generate(run.request(prompt, endless, max_tokens=tokens, priority=priority)):
            if name and name not in begun:
                begun.append(name)

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(use(1000, -9, "")) for _ in range(15)]
        # It ends when the others are waiting: in a second and more.
        tasks.create_task(use(20, -9, ""))
        await until(lambda: run.engine.load().running == 16, within_s=20.0)
        for name, priority in (("early", 0), ("late", 0), ("last", 1), ("first", -1)):
            tasks.create_task(use(1, priority, name))
        await until(lambda: len(begun) == 4, within_s=20.0)
        for task in running:
            task.cancel()
    assert begun == ["first", "early", "late", "last"]


@pytest.mark.parametrize(
    ("sampling", "form", "field", "unsupported"),
    [
        ({"temperature": -1.0}, None, "sampling.temperature", False),
        ({"top_p": 0.0}, None, "sampling.top_p", False),
        ({"logprobs": 21}, None, "sampling.logprobs", False),
        ({"logit_bias": {49152: 1.0}}, None, "sampling.logit_bias", False),
        ({"allowed_token_ids": [49152]}, None, "sampling.allowed_token_ids", False),
        ({"stop_token_ids": [-1]}, None, "sampling.stop_token_ids", False),
        ({"min_tokens": 13}, None, "sampling.min_tokens", False),
        ({"detokenize": False, "stop": ["x"]}, None, "sampling.stop", False),
        ({"thinking_token_budget": 5}, None, "sampling.thinking_token_budget", True),
        ({"prompt_logprob_token_ids": [{"ids": [1]}]}, None, "sampling.prompt_logprob_token_ids", True),
        ({}, {"regex": "(["}, "structured_output.regex", False),
        ({}, {"grammar": "root ::= ("}, "structured_output.grammar", False),
        ({}, {"json_schema": '{"type": "nonsense"}'}, "structured_output.json_schema", False),
        ({}, {"structural_tag": "{"}, "structured_output.structural_tag", False),
        ({}, {"json_object": {}, "whitespace_pattern": " "}, "structured_output.whitespace_pattern", True),
    ],
)
async def test_what_it_does_not_take_it_names(
    run: Runner, sampling: dict[str, Any], form: dict[str, Any] | None, field: str, unsupported: bool
) -> None:
    refused = await run.refused(
        generation_pb2.Sampling(**sampling),
        structured_output=generation_pb2.StructuredOutput(**form) if form else None,
    )
    assert (refused.field, refused.unsupported) == (field, unsupported), str(refused)
    assert "Paris" in await run.text(GREEDY, max_tokens=2)


async def test_prompts_it_does_not_take_are_refused(run: Runner) -> None:
    for prompt in ((), (-1,), (49152,), (1,) * 3000):
        refused = None
        try:
            async for _ in run.engine.generate(run.request(prompt, GREEDY)):
                pass
        except EngineRefused as error:
            refused = error
        assert refused is not None, f"{len(prompt)} tokens were taken"
        assert refused.field in ("token_ids", "prompt"), str(refused)
    await run.engine.check()


class TestVllmEngineResumes(ResumeContract):
    """What another engine began."""


class TestVllmEngine(EngineContract):
    """What every engine must do. Last in this module: its last test kills the engine."""
