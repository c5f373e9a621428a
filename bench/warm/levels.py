"""vLLM's two levels of sleep, without a mesh: `python -m bench.warm.levels --model FOLDER --out FILE.json`; GPUs only.

Level 1 moves the weights to the host's memory: Stoker's `ASLEEP`. Level 2 drops them, and they are read from the disk
again after waking: Stoker has no such state. What that would save is measured here: how long each takes to leave and to
be back, until the first token of a request, and whether the answer is what it was before.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from model_server.engines.vllm_settings import VllmSettings, environment

_PROMPT = "The capital of France is"
_TOKENS = 8


class Levels:
    """The measurements on one engine, as far as they got."""

    def __init__(self, llm: Any, sampling: Callable[[int], Any]) -> None:
        self.steps: list[dict[str, Any]] = []
        self._llm, self._sampling = llm, sampling
        self._asked = 0

    async def run(self, cycles: int, levels: Sequence[int]) -> None:
        """These levels, each so many times."""
        await self._step("first token, awake", self._first_token)
        before = await self._answer()
        for level in levels:
            for _ in range(cycles):
                await self._step(f"sleep level {level}", lambda level=level: self._sleep(level))  # type: ignore[misc]
                await self._step(f"wake from level {level}", self._wake if level == 1 else self._wake_empty)
                await self._step(f"first token after level {level}", self._first_token)
                self.steps[-1]["answer_as_before"] = await self._answer() == before

    async def _step(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        began_s = time.perf_counter()
        await work()
        step = {"step": what, "seconds": round(time.perf_counter() - began_s, 4)}
        self.steps.append(step)
        print(json.dumps(step), flush=True)

    async def _sleep(self, level: int) -> None:
        # The cache's blocks keep their hashes through a sleep, and would be taken for what they held.
        if not await self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache cannot be reset: something still runs")
        await self._llm.sleep(level)

    async def _wake(self) -> None:
        await self._llm.wake_up()

    async def _wake_empty(self) -> None:
        """Memory for the weights first, the weights themselves, then the cache: vLLM's own order for level 2."""
        await self._llm.wake_up(tags=["weights"])
        await self._llm.collective_rpc("reload_weights")
        await self._llm.wake_up(tags=["kv_cache"])

    async def _first_token(self) -> None:
        await self._outputs(1)

    async def _answer(self) -> list[int]:
        return await self._outputs(_TOKENS)

    async def _outputs(self, tokens: int) -> list[int]:
        self._asked += 1
        ids: list[int] = []
        async for output in self._llm.generate(_PROMPT, self._sampling(tokens), f"levels-{self._asked}"):
            ids = list(output.outputs[0].token_ids)
        return ids


def main() -> None:
    """Parse, set vLLM's environment, load, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=str(Path(__file__).parents[2] / ".cache/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--kv-cache-memory-bytes", type=int, default=4 << 30)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    settings = VllmSettings(
        model=options.model,
        load_format=options.load_format,
        max_model_len=options.max_model_len,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        gpu_memory_utilization=options.gpu_memory_utilization,
        enforce_eager=True,
        sleep_mode=True,
    ).resolved()
    if settings.on_cpu:
        parser.error("vLLM sleeps on GPUs only: nothing can be measured here")
    os.environ.update(environment(settings, os.environ))
    from model_server.engines import vllm_api
    from model_server.engines.vllm_arguments import arguments

    began_s = time.perf_counter()
    llm = vllm_api.start(arguments(settings), lambda stats: None)
    loaded = {"step": "import and load", "seconds": round(time.perf_counter() - began_s, 2)}
    levels = Levels(llm, lambda tokens: vllm_api.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
    try:
        # Random weights cannot be read again: vLLM refuses to reload them.
        asyncio.run(levels.run(options.cycles, (1,) if options.load_format == "dummy" else (1, 2)))
    finally:
        told = {"model": settings.name, "vllm": vllm_api.version(), "weights": options.load_format}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(told | {"steps": [loaded, *levels.steps]}, indent=2) + "\n", encoding="utf-8")
        llm.shutdown()


if __name__ == "__main__":
    main()
