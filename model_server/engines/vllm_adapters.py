"""LoRA adapters in vLLM: from a folder or a hub id into the engine and out again, while it runs."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

from model_server.engines import vllm_api
from model_server.engines.adapters import Adapters
from model_server.engines.vllm_lora_name import vllm_name

# The ranks that vLLM has room for: an adapter may have any up to the one chosen.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_READ_BYTES = 1 << 22


def lora_arguments(max_adapters: int, max_rank: int, *, on_cpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments for so many adapters of that rank at most."""
    if not max_adapters:
        return {}
    rank = next(each for each in _RANKS if each >= max_rank)
    # On processors, 0.32 computes what asks for no adapter with the last slot's, when it shares a batch with what does:
    # its index is -1, and torch counts that from the end (vllm-project/vllm#48421). Slots are filled from the first on;
    # one more stays empty.
    slots = max_adapters + on_cpu
    return {"enable_lora": True, "max_loras": slots, "max_lora_rank": rank}


class VllmAdapters:
    """One engine's. Raises EngineError and EngineRefused as Engine says, and whatever vLLM raises."""

    def __init__(self, llm: Any, most: int, folder_of: Callable[[str], str] = vllm_api.adapter_folder) -> None:
        self._llm = llm
        self._folder_of = folder_of
        self._held: Adapters[vllm_api.LoRARequest] = Adapters(most)
        # Never used again: an id tells vLLM which weights are meant.
        self._ids = count(1)

    @property
    def loading(self) -> bool:
        """Whether one is being loaded."""
        return self._held.loading

    def using(self, name: str) -> AbstractContextManager[Any]:
        """What to ask vLLM with, None without an adapter; it stays for as long as the block runs."""
        return self._held.using(name)

    async def add(self, name: str, source: str) -> None:
        """Load it."""
        with self._held.adding(name):
            folder, weights = await asyncio.to_thread(self._fetch, source)
            known_as = vllm_name(name, weights)
            lora = vllm_api.LoRARequest(lora_name=known_as, lora_int_id=next(self._ids), lora_path=folder)
            await vllm_api.add_lora(self._llm, lora)
            self._held.hold(name, lora)

    async def drop(self, name: str) -> None:
        """Let go of it."""
        await vllm_api.remove_lora(self._llm, self._held.take(name))

    async def drop_all(self) -> None:
        """Let go of all. Nothing runs."""
        for lora in self._held.take_all():
            await vllm_api.remove_lora(self._llm, lora)

    def _fetch(self, source: str) -> tuple[str, str]:
        """Its folder, and what tells its weights from others that lie there another day.

        Reads it once: the engine makes no step while it loads an adapter, and is not to wait for a disk.
        """
        folder = self._folder_of(source)
        dates: list[int] = []
        for file in sorted(Path(folder).glob("*")):
            if file.is_file():
                dates += (file.stat().st_size, file.stat().st_mtime_ns)
                with file.open("rb") as opened:
                    while opened.read(_READ_BYTES):
                        pass
        return folder, "-".join(map(str, dates))
