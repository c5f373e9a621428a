"""The simulator's settings: its speeds, its capacities, what it claims to be."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_server.engines.sim_tokenizer import SMALLEST_VOCABULARY


class SimSettings(BaseModel):
    """How fast and how large a simulated engine is. The defaults are near a small model on one GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    load_ms: float = Field(default=200.0, ge=0, description="How long loading the model takes.")
    sleeps: bool = Field(default=True, description="Whether a model can sleep: its weights in host memory.")
    sleep_ms: float = Field(default=20.0, ge=0, description="How long going to sleep takes.")
    wake_ms: float = Field(default=20.0, ge=0, description="How long waking takes.")
    max_adapters: int = Field(default=4, ge=0, description="LoRA adapters held at once.")
    adapter_load_ms: float = Field(default=20.0, ge=0, description="How long loading a LoRA adapter takes.")
    prefill_tokens_per_second: float = Field(default=20_000.0, gt=0, description="Prompt tokens computed a second.")
    step_base_ms: float = Field(default=8.0, ge=0, description="What a step takes whatever is in it.")
    step_per_stream_ms: float = Field(
        default=0.1, ge=0, description="What a step takes more for each stream that decodes."
    )

    max_streams: int = Field(default=64, ge=1, description="Streams that run at the same time.")
    max_batched_tokens: int = Field(default=2048, ge=2, description="Tokens computed in one step; above max_streams.")
    max_model_tokens: int = Field(default=8192, ge=2, description="The longest prompt and output together.")
    kv_tokens: int = Field(
        default=131_072, ge=1, description="Tokens that the KV cache holds; max_model_tokens at least."
    )
    block_tokens: int = Field(default=16, ge=1, description="Tokens in one block of the KV cache.")
    prefix_cache: bool = Field(default=True, description="Whether blocks are kept for prompts that begin alike.")

    vocabulary: int = Field(
        default=32_000, ge=SMALLEST_VOCABULARY, le=2**31 - 1, description="How many token ids there are."
    )
    eos_probability: float = Field(default=0.0, ge=0, le=1, description="Share of tokens that are end-of-text.")

    accelerator: str = Field(default="sim", description="The accelerator's name.")
    accelerator_count: int = Field(default=1, ge=0, description="How many accelerators there are.")
    accelerator_memory_bytes: int = Field(default=16 << 30, ge=0, description="Memory of one accelerator.")

    faults_file: Path | None = Field(
        default=None, description="JSON file of faults to inject, read again when it changes."
    )
    faults_poll_ms: float = Field(default=100.0, gt=0, description="How often the faults file is looked at.")

    @property
    def kv_blocks(self) -> int:
        """Whole blocks in the KV cache."""
        return self.kv_tokens // self.block_tokens

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_batched_tokens <= self.max_streams:
            raise ValueError(
                f"max_batched_tokens is {self.max_batched_tokens}; it must be above max_streams ({self.max_streams}), "
                "or prompts would wait until streams end"
            )
        if self.kv_blocks * self.block_tokens < self.max_model_tokens:
            raise ValueError(
                f"kv_tokens is {self.kv_tokens}, {self.kv_blocks} blocks of {self.block_tokens}; "
                f"one sequence of max_model_tokens ({self.max_model_tokens}) must fit"
            )
        return self
