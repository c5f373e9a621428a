"""The attempts under way, by endpoint, so that an endpoint can be emptied."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from router.errors import EndpointError
from router.interrupt import Interrupt
from router.ledger import Key
from stoker.v1 import generation_pb2
from stoker_common.transcript import Transcript


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """An attempt under way: what was asked, what came so far, and how to end it."""

    generation: generation_pb2.Generation
    transcript: Transcript
    interrupt: Interrupt = field(default_factory=Interrupt)


class Running:
    """All attempts of this router. Belongs to one event loop."""

    def __init__(self) -> None:
        self._attempts: dict[Key, set[Attempt]] = {}

    @contextmanager
    def attempt(self, key: Key, generation: generation_pb2.Generation, transcript: Transcript) -> Iterator[Interrupt]:
        """An attempt on `key`, for as long as the block runs."""
        attempt = Attempt(generation, transcript)
        attempts = self._attempts.setdefault(key, set())
        attempts.add(attempt)
        try:
            yield attempt.interrupt
        finally:
            attempts.discard(attempt)
            if not attempts:
                self._attempts.pop(key, None)

    def on(self, key: Key) -> int:
        """How many are under way on an endpoint."""
        return len(self._attempts.get(key, ()))

    def empty(self, key: Key, movable: Callable[[Attempt], bool], error: Callable[[], EndpointError]) -> int:
        """End those on `key` that are movable, each with an error of its own; returns how many."""
        moved = [attempt for attempt in self._attempts.get(key, ()) if attempt.interrupt.error is None]
        moved = [attempt for attempt in moved if movable(attempt)]
        for attempt in moved:
            attempt.interrupt.fire(error())
        return len(moved)
