"""The order in which a model's requests wait: lower priority first, then the earlier deadline, then who came first."""

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Place(Generic[T]):
    """One that waits. Compares by its place in the order."""

    priority: int
    deadline_s: float  # infinite without one
    arrival: int
    since_s: float = field(compare=False)
    who: T = field(compare=False)


class Waiting(Generic[T]):
    """A queue in that order. It is short (bounded by whoever fills it), so a sorted list serves best."""

    def __init__(self) -> None:
        self._places: list[Place[T]] = []
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place[T]]:
        return iter(self._places)

    @property
    def first(self) -> Place[T] | None:
        """Whose turn it is."""
        return self._places[0] if self._places else None

    @property
    def last(self) -> Place[T] | None:
        """Who waits longest from now."""
        return self._places[-1] if self._places else None

    def ahead_of(self, priority: int, deadline_s: float | None) -> int:
        """How many a newcomer would have ahead."""
        # After all that are alike, who came before.
        return bisect_left(self._places, (priority, _or_never(deadline_s), math.inf), key=_order)

    def add(self, priority: int, deadline_s: float | None, since_s: float, who: T) -> Place[T]:
        """Wait from now on."""
        place = Place(priority, _or_never(deadline_s), next(self._arrivals), since_s, who)
        insort(self._places, place)
        return place

    def remove(self, place: Place[T]) -> None:
        """Wait no longer. Nothing happens if it does not."""
        at = bisect_left(self._places, place)
        if at < len(self._places) and self._places[at] is place:
            del self._places[at]

    def after(self, place: Place[T]) -> Place[T] | None:
        """Whose turn it is when `place` cannot use it."""
        at = bisect_left(self._places, place) + 1
        return self._places[at] if at < len(self._places) else None

    def oldest_since_s(self) -> float | None:
        """Since when the one waits that has waited longest; None if none waits."""
        return min((place.since_s for place in self._places), default=None)


def _or_never(deadline_s: float | None) -> float:
    return math.inf if deadline_s is None else deadline_s


def _order(place: Place[T]) -> tuple[int, float, float]:
    return place.priority, place.deadline_s, place.arrival
