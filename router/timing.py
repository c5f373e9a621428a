"""What one endpoint's times have been like for one model, and how well they were foretold: learned, with decay."""

from collections.abc import Iterable

from router.ledger import Key
from router.line import Line

# How much one more stream slows a decoding batch, relative to a batch of one, where that is not measured yet. vLLM on
# an H100, 8B: 155 tok/s alone, 92 tok/s each at 32, 42 each at 128; that is 2 % a stream.
SLOWDOWN = 0.02
# Of an endpoint and a model, the last so many reports count for two thirds.
_REPORTS = 256.0
# Four streams: what is spread farther than that says more than the prior.
_STREAMS = 4.0**2
# Weight of a new error: settles within some hundred requests.
_WEIGHT = 1 / 32


class Timing:
    """One endpoint's times for one model."""

    __slots__ = ("_paces", "error", "firsts", "itl_ms_per_stream")

    def __init__(self) -> None:
        self._paces = Line(_REPORTS, _STREAMS)
        # First tokens that were seen, and their mean relative error: |actual - predicted| / actual, each at most 1.
        self.firsts = 0
        self.error = 0.0
        # How much later each token comes for one more stream. None: not known yet.
        self.itl_ms_per_stream: float | None = None

    def first_token(self, took_ms: float, predicted_ms: float) -> None:
        """A first token came after `took_ms`, which was foretold as `predicted_ms`."""
        self.firsts += 1
        error = min(1.0, abs(took_ms - predicted_ms) / max(took_ms, 1e-3))
        # The first ones are averaged.
        self.error += max(_WEIGHT, 1 / self.firsts) * (error - self.error)

    def pace(self, streams: int, itl_ms: float) -> None:
        """So many streams run with that time between tokens, as their server says; 0 while it does not know."""
        if itl_ms:
            self._paces.observe(streams, itl_ms)
            alone_ms = itl_ms / (1.0 + SLOWDOWN * streams)
            self.itl_ms_per_stream = self._paces.slope(SLOWDOWN * alone_ms)


class Timings:
    """Those of all endpoints and models."""

    def __init__(self) -> None:
        self._of: dict[tuple[Key, str], Timing] = {}

    def get(self, key: Key, model: str) -> Timing | None:
        """What is known; None if nothing is."""
        return self._of.get((key, model))

    def learn(self, key: Key, model: str) -> Timing:
        """To be told more."""
        return self._of.setdefault((key, model), Timing())

    def error(self, key: Key) -> tuple[int, float]:
        """First tokens seen on the endpoint, and their mean relative error, over its models."""
        its = [timing for (of, _), timing in self._of.items() if of == key and timing.firsts]
        firsts = sum(timing.firsts for timing in its)
        return firsts, sum(timing.firsts * timing.error for timing in its) / firsts if firsts else 0.0

    def keep(self, keys: Iterable[Key]) -> None:
        """Forget all endpoints but these."""
        kept = set(keys)
        for of in [of for of in self._of if of[0] not in kept]:
            del self._of[of]
