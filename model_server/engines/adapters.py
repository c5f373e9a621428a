"""The LoRA adapters that an engine holds, whatever engine it is: how many, whether they are in use."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from model_server.engine import EngineError, EngineRefused

T = TypeVar("T")


class Adapters(Generic[T]):
    """By name, each with what the engine calls it. At most `most`, those that are being loaded included."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[str, T] = {}
        self._loading: set[str] = set()
        self._users: Counter[str] = Counter()

    @property
    def loading(self) -> bool:
        """Whether one is being loaded."""
        return bool(self._loading)

    @contextmanager
    def adding(self, name: str) -> Iterator[None]:
        """A place for one more, taken for as long as the block runs, which ends with `hold`. Raises EngineError."""
        if name in self._held or name in self._loading:
            raise EngineError(f"the adapter {name!r} is there already")
        if len(self._held) + len(self._loading) >= self._most:
            raise EngineError(f"no room for the adapter {name!r}: this engine holds {self._most} (max_adapters)")
        self._loading.add(name)
        try:
            yield
        finally:
            self._loading.discard(name)

    def hold(self, name: str, known_as: T) -> None:
        """It is loaded."""
        self._held[name] = known_as

    def check(self, name: str) -> None:
        """Raise EngineRefused unless it is there. The empty name, no adapter, always is."""
        if name and name not in self._held:
            raise EngineRefused("lora_adapter", f"this engine does not hold the adapter {name!r}")

    @contextmanager
    def using(self, name: str) -> Iterator[T | None]:
        """What the engine calls it; it stays for as long as the block runs. Raises EngineRefused."""
        self.check(name)
        if not name:
            yield None
            return
        self._users[name] += 1
        try:
            yield self._held[name]
        finally:
            self._users[name] -= 1

    def take(self, name: str) -> T:
        """Let go of it; what the engine calls it. Raises EngineError."""
        if name not in self._held:
            raise EngineError(f"the adapter {name!r} is not there")
        if self._users[name]:
            raise EngineError(f"{self._users[name]} streams run with the adapter {name!r}")
        return self._held.pop(name)

    def take_all(self) -> list[T]:
        """Let go of all. Nothing runs."""
        held = list(self._held.values())
        self._held.clear()
        return held
