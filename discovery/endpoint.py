"""A model server's record: who it is, what it holds, how loaded it is. Immutable; codec.py writes it for Consul."""

from dataclasses import dataclass
from enum import Enum


class Residency(Enum):
    """Where a model is on a server. Values are the catalog's spelling."""

    HOT = "hot"
    ASLEEP = "asleep"
    STAGED = "staged"
    LISTED = "listed"


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model on a server. `name` is `name@version`, or a bare name."""

    name: str
    residency: Residency
    max_model_tokens: int
    time_to_ready_ms: float = 0.0
    base: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """A server's load at one moment. Shares are in [0, 1]; rates are measured, and 0 while not known."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    utilization: float = 0.0
    memory_usage: float = 0.0
    waiting_prompt_tokens: int = 0
    prefill_tokens_per_second: float = 0.0
    itl_ms: float = 0.0
    # How far from a prompt's beginning a token takes twice as long (stoker_common/prompt_work.py). Waiting tokens and
    # the rate are in tokens that take as long as the first. Links tell it, the catalog does not.
    attention_tokens: float = 0.0
    # Tokens of prompts and answers of all streams there, each for itself; and what a step takes for each of them.
    context_tokens: int = 0
    step_ms_per_context_token: float = 0.0
    # Of the waiting tokens, those that routers expect to be in caches there; None where nobody tells them apart.
    waiting_cached_prompt_tokens: int | None = None
    # What room for a model that is not hot would cost, beside making it ready. Links tell it, the catalog does not.
    room_ms: float = 0.0
    # The models that would make that room.
    yielding: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One life of one model server. `server` is stable across restarts; `epoch` is one id per life."""

    server: str
    address: str
    zone: str
    epoch: str
    engine: str
    models: tuple[ModelState, ...]
    engine_version: str = ""
    accelerator: str = "cpu"
    accelerator_count: int = 0
    accelerator_memory_bytes: int = 0
    max_streams: int = 1
    kv_tokens: int = 0
    # Tokens computed in one step at most; 0 if not known.
    step_tokens: int = 0
    link_version: int = 0
    numerics_class: str = ""
    resume_modes: tuple[str, ...] = ()
    # Those of them whose continuation has the bytes that an unbroken one would have had.
    exact_modes: tuple[str, ...] = ()
    load: Load = Load()

    def model(self, name: str) -> ModelState | None:
        """The state of the model called `name` here, or None."""
        return next((model for model in self.models if model.name == name), None)
