"""What a started vLLM engine says of itself, read from its configuration and its device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from vllm.platforms import current_platform

from model_server.engines.vllm_api import version


@dataclass(frozen=True, slots=True)
class Facts:
    """What a started engine says of itself."""

    max_model_tokens: int
    vocabulary: int
    max_streams: int
    kv_tokens: int
    step_tokens: int
    block_tokens: int
    accelerator: str
    accelerator_count: int
    accelerator_memory_bytes: int
    numerics: Mapping[str, str]
    v2_runner: bool
    thinking: bool
    sleeps: bool


def facts_of(llm: Any) -> Facts:
    """Read a started engine's configuration."""
    config = llm.vllm_config
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    v2_runner = bool(getattr(config, "use_v2_model_runner", False))
    reasoning = getattr(config, "reasoning_config", None)
    accelerator = _device_name()
    return Facts(
        max_model_tokens=int(model.max_model_len),
        vocabulary=int(model.get_vocab_size()),
        max_streams=int(config.scheduler_config.max_num_seqs),
        kv_tokens=int(cache.num_gpu_blocks or 0) * int(cache.block_size),
        step_tokens=int(config.scheduler_config.max_num_batched_tokens),
        block_tokens=int(cache.block_size),
        accelerator=accelerator,
        accelerator_count=1 if current_platform.is_cpu() else int(parallel.world_size),
        accelerator_memory_bytes=_device_memory_bytes(),
        numerics={
            "vllm": version(),
            "device": accelerator,
            "dtype": str(model.dtype).removeprefix("torch."),
            "kv": str(cache.cache_dtype),
            "quant": str(model.quantization or "none"),
            "tp": str(parallel.tensor_parallel_size),
            "pp": str(parallel.pipeline_parallel_size),
            "attention": _attention_backend(config),
            "runner": "v2" if v2_runner else "v1",
            "compiled": "no" if model.enforce_eager else "yes",
            # Its layers are computed by other kernels, also for requests without an adapter.
            **({"lora": "yes"} if config.lora_config is not None else {}),
        },
        v2_runner=v2_runner,
        thinking=bool(reasoning is not None and getattr(reasoning, "enabled", True)),
        sleeps=bool(getattr(model, "enable_sleep_mode", False)) and not current_platform.is_cpu(),
    )


def _device_name() -> str:
    if current_platform.is_cpu():
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return str(current_platform.get_device_name())


def _device_memory_bytes() -> int:
    if current_platform.is_cpu():
        return int(psutil.virtual_memory().total)
    return int(current_platform.get_device_total_memory())


def _attention_backend(config: Any) -> str:
    """The attention backend's name; `auto` where vLLM chooses, which it does by device, model and release alone."""
    if current_platform.is_cpu():
        return "cpu"
    backend = getattr(getattr(config, "attention_config", None), "backend", None)
    return str(getattr(backend, "name", backend) or "auto").lower()
