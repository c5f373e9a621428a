"""The simulator keeps the engines' contract."""

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from model_server.engine import Engine
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from stoker.v1 import generation_pb2
from tests.contract.adapter_contract import AdapterContract, Sources
from tests.contract.engine_contract import Capabilities, EngineContract, Kill
from tests.contract.resume_contract import ResumeContract

SETTINGS = SimSettings(
    load_ms=0,
    step_base_ms=0.5,
    step_per_stream_ms=0,
    prefill_tokens_per_second=1e6,
    max_streams=8,
    max_batched_tokens=64,
    max_model_tokens=4096,
    kv_tokens=65_536,
    eos_probability=1 / 16,
)


def _refused() -> dict[str, generation_pb2.Generation]:
    sampling = generation_pb2.Sampling
    samplings = {
        "sampling.logit_bias": sampling(logit_bias={5: 1.0}),
        "sampling.prompt_logprobs": sampling(prompt_logprobs=0),
        "sampling.bad_words": sampling(bad_words=["no"]),
        "sampling.logprob_token_ids": sampling(logprobs=0, logprob_token_ids=[5]),
        "sampling.thinking_token_budget": sampling(thinking_token_budget=5),
        "sampling.repetition_detection": sampling(repetition_detection=generation_pb2.RepetitionDetection(min_count=2)),
    }
    refused = {name: generation_pb2.Generation(sampling=value) for name, value in samplings.items()}
    structured = generation_pb2.StructuredOutput(regex="a+")
    refused["structured_output"] = generation_pb2.Generation(structured_output=structured)
    return refused


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncGenerator[Engine, None]:
    engine = SimEngine("sim@1", SETTINGS)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture(scope="module")
def capabilities() -> Capabilities:
    ends = generation_pb2.Generation(text="Hello", sampling=generation_pb2.Sampling(temperature=0))
    # One token in a hundred is half a character.
    split = generation_pb2.Generation(text="A", sampling=generation_pb2.Sampling(temperature=0, ignore_eos=True))
    return Capabilities(refused=_refused(), ends_by_itself=ends, split_characters=split)


@pytest.fixture(scope="module")
def kill() -> Kill:
    async def die(engine: Engine) -> None:
        assert isinstance(engine, SimEngine)
        engine.faults.inject(dead=True)

    return die


@pytest.fixture(scope="module")
def adapters() -> Sources:
    return Sources(["any", "other"])


class TestSimEngineResumes(ResumeContract):
    """What another engine began, in real time. Before the class that kills the engine."""


class TestSimEngineAdapters(AdapterContract):
    """LoRA adapters, in real time."""


class TestSimEngine(EngineContract):
    """The simulator, in real time."""
