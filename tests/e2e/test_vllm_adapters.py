"""LoRA adapters in a real vLLM on the CPU."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from model_server.engine import Engine
from model_server.engines.vllm_settings import VllmSettings, environment
from tests.contract.adapter_contract import AdapterContract, Sources
from tests.fakes.lora import random_adapter

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache/models/SmolLM2-135M-Instruct"

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
