"""How long models take to be ready from where they are, as measured on this server."""

from collections.abc import Iterable

from discovery.endpoint import Residency

# A new measurement counts half: loads are few, and what the last one took says most.
_WEIGHT = 0.5


class ReadyTimes:
    """Seconds to be hot, by model and by where it was."""

    def __init__(self) -> None:
        self._s: dict[tuple[str, Residency], float] = {}

    def observe(self, model: str, was: Residency, took_s: float) -> None:
        """A model that `was` there got hot."""
        known = self._s.get((model, was))
        self._s[model, was] = took_s if known is None else known + _WEIGHT * (took_s - known)

    def expected_s(self, model: str, now: Residency) -> float | None:
        """How long a model that is there `now` will take; as long as others took at most, if it was never measured.

        None if no model was.
        """
        if now is Residency.HOT:
            return 0.0
        known = self._s.get((model, now))
        return known if known is not None else max(self._from(now), default=None)

    def _from(self, residency: Residency) -> Iterable[float]:
        return [took_s for (_, was), took_s in self._s.items() if was is residency]
