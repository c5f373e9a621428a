"""What an engine is: the one interface behind which vLLM and the simulator sit."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from stoker.v1 import generation_pb2, inference_pb2


class EngineError(Exception):
    """Base of what engines raise. `retryable`: whether another server may well succeed."""

    retryable = False


class EngineDead(EngineError):
    """The engine is gone and will not come back by itself. Streams that ran on it raise this."""

    retryable = True


class DeviceLost(EngineDead):
    """The engine is gone because its accelerator is."""


class EngineRefused(EngineError):
    """The request is not for this engine: `field` names what it cannot do (`unsupported`) or what is wrong with it."""

    def __init__(self, field: str, message: str, *, unsupported: bool = False) -> None:
        super().__init__(message)
        self.field = field
        self.unsupported = unsupported


class ResumeMode(Enum):
    """How an engine goes on with an output that another one began. Named as in the API."""

    # Prompt and emitted ids become the prompt: a valid continuation of plain sampling.
    PREFILL = "prefill"
    # The request starts over, and the emitted ids are forced one by one: every state is what it would have been.
    REPLAY = "replay"
    # The emitted ids become the engine's own output, computed at once: the same, for the price of a prefill.
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is, known once it has started. `numerics_class`: equal classes compute equal bytes.

    `resume_modes`: those the engine can do, at least for requests of some kind; it refuses the others. `exact_modes`:
    of these, the ones whose bytes are what they would have been. All modes but PREFILL keep every state. `sleeps`:
    whether it can move its weights to host memory and back. `prefix_cache`: whether it keeps what it computed, for
    prompts that begin alike; `tells_dropped`: whether `Engine.dropped` says what leaves it. `max_adapters`: LoRA
    adapters that it can hold at once, 0 where it takes none. `step_tokens`: what a step takes at most, 0 if
    not known.
    """

    engine: str
    version: str
    model: str
    max_model_tokens: int
    vocabulary: int
    max_streams: int
    kv_tokens: int
    block_tokens: int
    accelerator: str
    accelerator_count: int
    accelerator_memory_bytes: int
    numerics_class: str
    resume_modes: tuple[ResumeMode, ...] = ()
    exact_modes: tuple[ResumeMode, ...] = ()
    sleeps: bool = False
    prefix_cache: bool = True
    tells_dropped: bool = False
    max_adapters: int = 0
    step_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence to generate (`n` is 1 here: more is the service's business). `prompt_token_ids` is not empty.

    `emitted_token_ids`: what another engine has generated of it already, to be gone on with by `resume_mode`. All else,
    `max_tokens` and `min_tokens` too, is as it was in the original request. See Engine.generate.
    `adapter`: the LoRA adapter to apply, one that the engine holds; empty for none.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: generation_pb2.Sampling
    max_tokens: int
    structured_output: generation_pb2.StructuredOutput | None = None
    cache_salt: str = ""
    priority: int = 0
    trace_headers: dict[str, str] = field(default_factory=dict)
    emitted_token_ids: tuple[int, ...] = ()
    resume_mode: ResumeMode = ResumeMode.PREFILL
    adapter: str = ""


class EngineOutput(NamedTuple):
    """What one step added to a sequence. `finish_reason` is set in the last one; `cached_tokens` in the first at least,
    and so are `queue_ms`, how long the sequence waited before the engine began on it, and `prefill_ms`, how long it
    took from there to its first token; None if the engine cannot tell.

    A tuple because one is made for every token: a frozen dataclass of as many fields takes 4 us, this takes 0.4.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[inference_pb2.TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[inference_pb2.TokenLogprobs, ...] = ()
    finish_reason: inference_pb2.FinishReason.ValueType = inference_pb2.FINISH_REASON_UNSPECIFIED
    stop_string: str | None = None
    stop_token_id: int | None = None
    cached_tokens: int = 0
    queue_ms: float | None = None
    prefill_ms: float | None = None


# Takes one output, at once.
Take = Callable[[EngineOutput], None]


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The engine's own figures after its latest step. `steps` counts up with every step and never otherwise."""

    steps: int = 0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


class Engine(Protocol):
    """A model, loaded, that turns token ids into token ids. All methods belong to one event loop."""

    async def start(self) -> None:
        """Load the model; returns when it can generate. Raises EngineError with what to do about it."""

    @property
    def info(self) -> EngineInfo:
        """What the engine is. Valid after `start`."""

    async def encode(self, generation: generation_pb2.Generation) -> list[int]:
        """The prompt's token ids: tokenises text, renders chat with the model's template, hands ids through.

        Works off the event loop where it takes long. Raises EngineRefused.
        """

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        """Generate, a step at a time. Closing the generator aborts the sequence in the engine at once.

        The generator raises EngineRefused before its first output, EngineDead at any time. An end that nobody asked
        for (the engine was told to abort from outside) raises EngineDead; it is never a finish.

        With emitted ids, the outputs begin with those: all of the ids once and in order, with the text that an engine
        which generated them itself would have sent by then, whole characters and nothing that may become a stop
        string. What is new follows; one output may hold the last of the old and the first of the new. An output of
        emitted ids alone may lack their logprobs, any other has those of all its ids. Where the emitted ids end the
        sequence already, the outputs end with them and its finish reason. EngineRefused names `emitted_token_ids`
        where they cannot be this request's, at any time before something new; `resume_mode` (unsupported) where the
        engine cannot do it for this request. `cached_tokens` counts tokens of the prompt only. An adapter that the
        engine does not hold is refused as `lora_adapter`.
        """

    async def run(self, request: EngineRequest, take: Take) -> None:
        """The same, handed over: `take` gets each output as it comes, from within the engine's work on its step, and
        must not wait. Returns behind the last.

        Raises what `generate` raises, and what `take` raised, which takes the sequence off the engine and harms no
        other. Cancelling aborts it; `take` is not called any more then.
        """

    def load(self) -> EngineLoad:
        """The latest figures; cheap, no I/O."""

    def dropped(self) -> Sequence[int]:
        """The keys (`token_chain`) of the blocks that left the prefix cache since the last call; cheap, never waits.

        Empty unless `EngineInfo.tells_dropped`: then what is cached is estimated.
        """

    async def check(self) -> None:
        """Raise EngineDead if the engine is known to be dead. Says nothing of one that is stuck: watch its steps."""

    async def sleep(self) -> None:
        """Move the weights to host memory and let go of the KV cache, and so of every cached prefix, and of adapters.

        For who made sure that nothing runs: raises EngineError where something does, where the engine sleeps already,
        and where it cannot sleep (`EngineInfo.sleeps`). While it sleeps, `generate` raises EngineError.
        """

    async def wake(self) -> None:
        """Make a sleeping engine able to generate again. Raises EngineError where it does not sleep or cannot."""

    async def add_adapter(self, name: str, source: str) -> None:
        """Load a LoRA adapter for requests that name it, from a folder or by a hub id; streams go on meanwhile.

        Raises EngineError where it is held already, where `EngineInfo.max_adapters` are, while the engine sleeps, and
        where it cannot be loaded, with what to do about it; the engine goes on without it then.
        """

    async def drop_adapter(self, name: str) -> None:
        """Let go of an adapter. Raises EngineError where the engine does not hold it, or something runs with it."""

    async def stop(self) -> None:
        """End the engine and all its processes, also one that sleeps. Idempotent."""
