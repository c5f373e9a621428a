"""LoRA adapters in a real vLLM on the CPU: the engine's contract, and a server that has some."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from bench.warm.lora_weights import random_adapter
from discovery.consul_agent import free_ports
from model_server.engine import Engine
from model_server.engines.vllm_settings import VllmSettings, environment
from stoker.v1 import endpoint_pb2, generation_pb2, model_pb2, model_pb2_grpc
from tests.contract.adapter_contract import AdapterContract, Sources
from tests.contract.engine_contract import PROMPT
from tests.fakes.inference import channel_to, stream, token_ids, unary
from tests.fakes.until import until

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache/models/SmolLM2-135M-Instruct"
READY_WITHIN_S = 250.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    # What vLLM and its libraries warn of is theirs.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xdist_group("vllm"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Engine]:
    settings = VllmSettings(model=str(MODEL), max_adapters=2, max_lora_rank=8)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(settings, os.environ).items():
            patch.setenv(key, value)
        from model_server.engines.vllm_engine import VllmEngine

        made = VllmEngine(settings)
        await made.start()
        yield made
        await made.stop()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("adapters")
    large = random_adapter(folder / "large", MODEL, 9)
    config = json.loads((large / "adapter_config.json").read_text())
    (large / "adapter_config.json").write_text(json.dumps(config | {"r": 64}))
    return Sources(
        good=[str(random_adapter(folder / name, MODEL, seed)) for seed, name in enumerate(("one", "two"))],
        bad=[str(folder / "nowhere"), str(large)],
        batch_invariant=False,
    )


class TestVllmAdapters(AdapterContract):
    """The contract."""


@pytest.mark.timeout(400)
async def test_a_servers_adapters_answer_and_one_loads_beside_a_stream_of_the_base(tmp_path: Path) -> None:
    names = ("one", "two", "three")
    given = [f"{name}={random_adapter(tmp_path / name, MODEL, seed)}" for seed, name in enumerate(names)]
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "model_server", "--model", str(MODEL), "--model-name", "base"]
    command += ["--adapters", ",".join(given), "--max-adapters", "2", "--vllm-max-lora-rank", "8"]
    with (tmp_path / "server.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, "--listen-port", str(port), stdout=output, stderr=output, cwd=ROOT, start_new_session=True
        )
    try:
        async with channel_to(f"127.0.0.1:{port}") as channel:
            plain = await first_answer(channel)
            loop, came = asyncio.get_running_loop(), list[float]()

            async def read() -> None:
                async for part in stream(channel, asked("base", max_tokens=400)):
                    came.extend(loop.time() for _ in token_ids([part]))

            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(read())
                await until(lambda: len(came) > 5)
                loading = time.monotonic()
                async for _ in model_pb2_grpc.ModelServiceStub(channel).LoadModel(
                    model_pb2.LoadModelRequest(target=model_pb2.ModelTarget(model="one"))
                ):
                    pass
                took_s = time.monotonic() - loading
                assert not reading.done(), "the base's stream went on meanwhile"
            gaps = sorted(after - before for before, after in pairwise(came))
            median_ms, longest_ms = gaps[len(gaps) // 2] * 1e3, gaps[-1] * 1e3
            figures = f"loaded in {took_s * 1e3:.0f} ms; gaps {median_ms:.0f} ms, the longest {longest_ms:.0f} ms"
            sys.stdout.write(f"{figures}\n")
            assert took_s < 10.0 and gaps[-1] < 2.0, figures
            by_name = {name: await answer(channel, asked(name)) for name in names}
            assert await answer(channel, asked("base", "two")) == by_name["two"]
            assert len({tuple(ids) for ids in (plain, *by_name.values())}) == 4
            listed = await model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())
            hot = [at.model.name for at in listed.models if at.model.residency == endpoint_pb2.RESIDENCY_HOT]
            assert hot == ["base", "two", "three"], "two at once; the one used longest ago made room"
            assert {at.model.base for at in listed.models if at.model.name != "base"} == {"base"}
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 60)


def asked(model: str, adapter: str = "", max_tokens: int = 8) -> generation_pb2.Generation:
    sampling = generation_pb2.Sampling(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return generation_pb2.Generation(model=model, lora_adapter=adapter, text=PROMPT, sampling=sampling)


async def answer(channel: grpc.aio.Channel, generation: generation_pb2.Generation) -> list[int]:
    return list((await unary(channel, generation, timeout=60)).outputs[0].token_ids)


async def first_answer(channel: grpc.aio.Channel) -> list[int]:
    """The base's, as soon as the server serves."""
    async with asyncio.timeout(READY_WITHIN_S):
        while True:
            try:
                return await answer(channel, asked("base"))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.2)
