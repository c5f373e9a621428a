"""What the benchmark of LoRA adapters asks of a server, and what it makes of the answers."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from bench.warm.adapters import BASE, Adapters
from bench.warm.lora_weights import LINEAR, random_adapter
from stoker_client import Client, Code, StokerError

NAMES = ("adapter-1", "adapter-2", "adapter-3")


@dataclass
class Chunk:
    token_ids: list[int]


@dataclass
class Server:
    """Answers with the model's number, holds two adapters, and has no room while `full`."""

    hot: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    full: bool = False

    async def stream(self, prompt: str, *, model: str, max_tokens: int, **rest: object) -> AsyncGenerator[Chunk, None]:
        if self.full:
            raise StokerError(Code.UNAVAILABLE, "no room")
        if model != BASE and model not in self.hot:
            self._hold(model)
        for _ in range(max_tokens):
            await asyncio.sleep(0)
            yield Chunk([len(model), hash(model)])

    async def load_model(self, model: str, **_: object) -> AsyncGenerator[str, None]:
        self._hold(model)
        yield "hot"

    async def unload_model(self, model: str) -> None:
        await asyncio.sleep(0)
        if model in self.hot:
            self.hot.remove(model)

    async def sleep_model(self, model: str) -> None:
        self.hot.clear()

    def _hold(self, model: str) -> None:
        self.loads.append(model)
        self.hot = [*(each for each in self.hot if each != model), model][-2:]


async def rows(server: Server) -> list[dict[str, Any]]:
    steps = Adapters(cast(Client, server), NAMES, most=2, streams=4, seconds=0.05)
    return [row async for row in steps.run()] + [row async for row in steps.asleep()]


async def test_all_steps_are_told_and_answers_are_told_apart() -> None:
    server = Server()
    told = {row["step"]: row for row in await rows(server)}
    assert server.loads[:3] == list(NAMES), "two are loaded, and one of them goes when the third one is asked for"
    assert told["answers"]["distinct"] == 3
    assert told["answers after all moved"]["as_before"] == 2
    assert told["streams: base, adapters come and go"]["loads"] > 0
    for step, row in told.items():
        assert "error" not in row and not row.get("failed"), step
        if step.startswith("streams"):
            assert row["tokens_per_s"] > 0 and row["gap_p50_ms"] <= row["gap_p99_ms"] <= row["gap_most_ms"]


async def test_what_fails_is_a_row_and_not_the_end() -> None:
    server = Server()
    steps = Adapters(cast(Client, server), NAMES, most=2, streams=4, seconds=0.05)
    server.full = True
    step = await steps._step("first token", BASE, lambda: steps._answer(BASE, 1))
    under_load = await steps._under_load("streams", (BASE,))
    assert step["error"].endswith("no room")
    assert under_load["failed"] >= 4 and under_load["tokens_per_s"] == 0 and "gap_p50_ms" not in under_load


def test_weights_have_the_shapes_of_the_models_projections(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4, "num_key_value_heads": 1}
            | {"num_hidden_layers": 1, "head_dim": 3}
        )
    )
    folder = random_adapter(tmp_path / "made", tmp_path, 1, rank=2, modules=LINEAR)
    shapes = {
        name.split(".layers.0.")[1].removesuffix(".weight"): weights.shape
        for name, weights in safetensors.load_file(folder / "adapter_model.safetensors").items()
    }
    assert len(shapes) == 14
    assert (shapes["self_attn.q_proj.lora_A"], shapes["self_attn.q_proj.lora_B"]) == ((2, 8), (12, 2))
    assert (shapes["self_attn.k_proj.lora_A"], shapes["self_attn.k_proj.lora_B"]) == ((2, 8), (3, 2))
    assert (shapes["self_attn.o_proj.lora_A"], shapes["self_attn.o_proj.lora_B"]) == ((2, 12), (8, 2))
    assert (shapes["mlp.down_proj.lora_A"], shapes["mlp.down_proj.lora_B"]) == ((2, 12), (8, 2))
    assert (shapes["mlp.up_proj.lora_A"], shapes["mlp.up_proj.lora_B"]) == ((2, 8), (12, 2))
