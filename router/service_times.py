"""How long a model's requests occupy a server, learned from those that finished. Tells how fast a queue moves."""

from collections import OrderedDict
from dataclasses import dataclass

# Weight of a new observation: settles within some fifty requests.
_WEIGHT = 1 / 16
# Model names come from requests that servers answered, so they are few; this only bounds a fleet gone wild.
_MAX_MODELS = 1024


@dataclass(slots=True)
class _Mean:
    request_s: float
    tokens: float


class ServiceTimes:
    """Mean times from dispatch to the end, for each model: of a request, and with it of a token."""

    def __init__(self) -> None:
        self._means: OrderedDict[str, _Mean] = OrderedDict()

    def observe(self, model: str, took_s: float, tokens: int) -> None:
        """A request that ran to its end took so long for so many tokens, its prompt included."""
        mean = self._means.get(model)
        if mean is None:
            self._means[model] = _Mean(took_s, max(1, tokens))
            if len(self._means) > _MAX_MODELS:
                self._means.popitem(last=False)
            return
        mean.request_s += _WEIGHT * (took_s - mean.request_s)
        mean.tokens += _WEIGHT * (max(1, tokens) - mean.tokens)

    def request_s(self, model: str) -> float | None:
        """Of a request of the model; None before the first has finished."""
        mean = self._means.get(model)
        return mean.request_s if mean else None

    def expected_s(self, model: str, tokens: int) -> float | None:
        """Of a request with so many tokens of answer; None before the first has finished."""
        mean = self._means.get(model)
        # The means' ratio, not the ratios' mean: a short answer's time is its prompt's, and says little of a token's.
        return mean.request_s / mean.tokens * tokens if mean else None
