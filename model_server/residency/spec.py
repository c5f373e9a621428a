"""What a server is told of a model that it may serve."""

from collections.abc import Callable
from dataclasses import dataclass

from model_server.engine import Engine


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that the server may serve. `make` makes an engine for it, not started, each time it is to be loaded.

    `share`: of the device's memory, while it is hot. `staged`: whether its weights are whole on the local disk; may
    read the disk. `max_model_tokens`: what it can take, 0 while nobody knows before it was loaded.
    """

    name: str
    make: Callable[[], Engine]
    share: float = 0.0
    staged: Callable[[], bool] = lambda: True
    max_model_tokens: int = 0


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """A LoRA adapter that the server may serve: a model whose base is one of its models. `source`: a folder or hub id.

    `staged`: as of a model.
    """

    name: str
    base: str
    source: str
    staged: Callable[[], bool] = lambda: True
