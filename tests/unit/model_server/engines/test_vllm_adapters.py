"""What vLLM is told of LoRA adapters: its room for them, each one's name, and what it is to forget."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from model_server.engine import EngineError
from tests.fakes.vllm_module import vllm_module

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.timeout(120)]


class Llm:
    """An AsyncLLM as far as adapters go."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.seen: list[Any] = []

    async def add_lora(self, lora: Any) -> bool:
        self.seen.append(lora)
        self.held[lora.lora_int_id] = lora
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        return self.held.pop(lora_id, None) is not None


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    """The module under test."""
    with vllm_module("vllm_adapters") as found:
        yield found


def folder(path: Path, weights: bytes) -> str:
    path.mkdir(exist_ok=True)
    (path / "adapter_model.safetensors").write_bytes(weights)
    return str(path)


def test_on_processors_one_slot_stays_empty_and_ranks_are_those_that_vllm_knows(module: ModuleType) -> None:
    assert module.lora_arguments(0, 16, on_cpu=True) == {}
    assert module.lora_arguments(2, 16, on_cpu=True) == {"enable_lora": True, "max_loras": 3, "max_lora_rank": 16}
    assert module.lora_arguments(2, 33, on_cpu=False) == {"enable_lora": True, "max_loras": 2, "max_lora_rank": 64}


async def test_other_weights_in_the_same_folder_have_another_name_and_every_load_an_id_of_its_own(
    module: ModuleType, tmp_path: Path
) -> None:
    llm = Llm()
    adapters = module.VllmAdapters(llm, 2)
    for weights in (b"old", b"old", b"other weights"):
        await adapters.add("tone", folder(tmp_path / "tone", weights))
        with adapters.using("tone") as lora:
            assert lora is llm.seen[-1] and lora.lora_path == str(tmp_path / "tone")
        await adapters.drop("tone")
    assert not llm.held
    assert [lora.lora_int_id for lora in llm.seen] == [1, 2, 3]
    assert llm.seen[0].lora_name != llm.seen[2].lora_name


async def test_the_same_weights_keep_their_name_and_so_what_is_cached_under_it(
    module: ModuleType, tmp_path: Path
) -> None:
    llm = Llm()
    adapters, source = module.VllmAdapters(llm, 2), folder(tmp_path / "tone", b"weights")
    for _ in range(2):
        await adapters.add("tone", source)
        await adapters.drop("tone")
    assert llm.seen[0].lora_name == llm.seen[1].lora_name


async def test_before_a_sleep_vllm_forgets_all_of_them(module: ModuleType, tmp_path: Path) -> None:
    llm = Llm()
    adapters = module.VllmAdapters(llm, 2)
    for name in ("one", "two"):
        await adapters.add(name, folder(tmp_path / name, b"w"))
    await adapters.drop_all()
    assert not llm.held and not adapters.loading
    with pytest.raises(EngineError):
        await adapters.drop("one")
