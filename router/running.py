"""The attempts under way, by endpoint, so that an endpoint can be emptied."""

from collections.abc import Callable
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
    # Tokens that were passed on in this attempt; None where they do not come this way.
    passed_on: Callable[[], int] | None = None
    interrupt: Interrupt = field(default_factory=Interrupt)

    @property
    def came(self) -> int:
        """Tokens that came in this attempt, whether its client has read them or not; 0 while that is not known."""
        waiting = self.interrupt.waiting() if self.passed_on is not None else None
        return 0 if waiting is None or self.passed_on is None else self.passed_on() + waiting


class Runs:
    """A context: the attempt is one of those under way on `key`. Gives what interrupts it."""

    __slots__ = ("_all", "_attempt", "_key")

    def __init__(self, attempts: dict[Key, set[Attempt]], key: Key, attempt: Attempt) -> None:
        self._all = attempts
        self._key = key
        self._attempt = attempt

    def __enter__(self) -> Interrupt:
        self._all.setdefault(self._key, set()).add(self._attempt)
        return self._attempt.interrupt

    def __exit__(self, *_: object) -> None:
        attempts = self._all[self._key]
        attempts.discard(self._attempt)
        if not attempts:
            del self._all[self._key]


class Running:
    """All attempts of this router. Belongs to one event loop."""

    def __init__(self) -> None:
        self._attempts: dict[Key, set[Attempt]] = {}

    def attempt(
        self,
        key: Key,
        generation: generation_pb2.Generation,
        transcript: Transcript,
        passed_on: Callable[[], int] | None = None,
    ) -> "Runs":
        """An attempt on `key`, for as long as the block runs."""
        return Runs(self._attempts, key, Attempt(generation, transcript, passed_on))

    def on(self, key: Key) -> int:
        """How many are under way on an endpoint."""
        return len(self._attempts.get(key, ()))

    def keys(self) -> list[Key]:
        """The endpoints that have any."""
        return list(self._attempts)

    def attempts(self, key: Key) -> list[Attempt]:
        """Those under way on `key` that nobody has ended."""
        return [attempt for attempt in self._attempts.get(key, ()) if attempt.interrupt.error is None]

    def empty(self, key: Key, movable: Callable[[Attempt], bool], error: Callable[[], EndpointError]) -> int:
        """End those on `key` that are movable, each with an error of its own; returns how many."""
        moved = [attempt for attempt in self.attempts(key) if movable(attempt)]
        for attempt in moved:
            attempt.interrupt.fire(error())
        return len(moved)
