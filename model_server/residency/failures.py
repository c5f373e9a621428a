"""Models that could not be loaded are not tried again at once: what is wrong stays wrong until somebody acts."""

from dataclasses import dataclass

from stoker_common.clock import Clock
from stoker_common.refusal import Refusal, unavailable

_FIRST_S, _LONGEST_S = 5.0, 120.0
_SHORTEST_RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class Failure:
    """The last one of a model: why, until when it is left alone, and how long that is in all."""

    model: str
    why: str
    until_s: float
    backoff_s: float
    clock: Clock

    def refusal(self) -> Refusal:
        """What those hear who ask for the model, made anew for each."""
        retry_s = max(_SHORTEST_RETRY_S, self.until_s - self.clock())
        text = f"this server could not ready the model {self.model!r}: {self.why}"
        return unavailable(text, retry_after_s=retry_s, reason="MODEL_FAILED")


class Failures:
    """Those of all models, by name. The time doubles with each failure in a row."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: dict[str, Failure] = {}

    def note(self, model: str, why: str) -> Failure:
        """It could not be loaded."""
        last = self._failures.get(model)
        backoff_s = _FIRST_S if last is None else min(2 * last.backoff_s, _LONGEST_S)
        failure = self._failures[model] = Failure(model, why, self._clock() + backoff_s, backoff_s, self._clock)
        return failure

    def forget(self, model: str) -> None:
        """It was loaded."""
        self._failures.pop(model, None)

    def check(self, model: str) -> None:
        """Raises Refusal (MODEL_FAILED) if it is to be left alone now."""
        failure = self._failures.get(model)
        if failure is not None and failure.until_s > self._clock():
            raise failure.refusal()
