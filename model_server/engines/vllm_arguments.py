"""Resolved settings as vLLM's engine arguments."""

from pathlib import Path
from typing import Any

from model_server.engines.vllm_adapters import lora_arguments
from model_server.engines.vllm_settings import VllmSettings


def arguments(settings: VllmSettings) -> dict[str, Any]:
    """By their names there; None leaves vLLM its own default."""
    return {
        "model": str(Path(settings.model).resolve()) if settings.is_folder else settings.model,
        "served_model_name": settings.name,
        "dtype": settings.dtype,
        "quantization": settings.quantization,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "block_size": settings.block_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "kv_cache_memory_bytes": settings.kv_cache_memory_bytes,
        "enforce_eager": settings.enforce_eager,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "trust_remote_code": settings.trust_remote_code,
        "load_format": settings.load_format,
        "seed": settings.seed,
        "otlp_traces_endpoint": _url(settings.otlp_traces_endpoint),
        "shutdown_timeout": settings.shutdown_timeout_s,
        # vLLM has it for GPUs, where its weights and cache then come from an allocator of its own.
        "enable_sleep_mode": True if settings.sleep_mode and not settings.on_cpu else None,
        # Lower numbers first, and first come, first served among equals.
        "scheduling_policy": "priority",
        "enable_prefix_caching": True,
        **lora_arguments(settings.max_adapters, settings.max_lora_rank, on_cpu=settings.on_cpu),
    }


def _url(endpoint: str | None) -> str | None:
    """An OTLP endpoint as vLLM's exporter takes it: without a scheme it would want TLS."""
    return endpoint if endpoint is None or "://" in endpoint else f"http://{endpoint}"
