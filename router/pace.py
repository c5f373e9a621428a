"""Which endpoint's streams run far slower than they did there, while the others' do not. Pure.

Fed with how many tokens came on how many streams, look by look. An endpoint is measured by itself, as it was a few
seconds ago, since a fleet's devices differ; and by the others, since what slows all of them down is nobody's fault. A
full batch and prompts under computation slow streams down as they should: such times say nothing.
"""

from collections import deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from statistics import median
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

# Long enough for tokens of engines with 5 a second, short enough for a stream with a minute's deadline.
WINDOW_S = 4.0
# So many tokens had to be expected in a window, or it says nothing.
MIN_EXPECTED = 10.0
# How slow, as a multiple of what is usual there, and of the others' slowness; and for how long.
FAR = 4.0
THAN_OTHERS = 3.0
HOLD_S = 2.0
# Below this it is no longer slow: hysteresis.
BACK = 2.0
# Nobody reads 50 tokens a second: faster intervals count as this.
FLOOR_S = 0.02
# How much one more stream in the batch slows the others, as in scorers.py.
SLOWDOWN_PER_STREAM = 0.02
# What is usual follows within about so many seconds of streams' time.
USUAL_STREAM_S = 100.0
# Slow for so long and not slower than the others: that is how it is now.
ACCEPT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Look:
    at_s: float
    stream_s: float  # as if each stream had been alone in the batch
    tokens: int


@dataclass(slots=True)
class _Pace:
    usual_s: float  # between two tokens of a stream that is alone; 0 while not known
    looks: deque[_Look] = field(default_factory=deque)
    far_since_s: float | None = None
    held_since_s: float | None = None
    slow: bool = False

    def lateness(self) -> float | None:
        """The interval over the window, as a multiple of the usual one; None if there is too little to tell."""
        if not self.usual_s:
            return None
        usual_s = max(self.usual_s, FLOOR_S)
        stream_s = sum(look.stream_s for look in self.looks)
        if stream_s < MIN_EXPECTED * usual_s or self.looks[-1].at_s - self.looks[0].at_s < WINDOW_S / 2:
            return None
        return stream_s / max(1, sum(look.tokens for look in self.looks)) / usual_s

    def learn(self, look: _Look) -> None:
        """An old look, of a time that is known to have been as usual."""
        if look.stream_s <= 0.0:
            return
        # A mean of intervals, weighted by tokens: a look without one is part of the next interval.
        kept = max(0.0, 1.0 - look.stream_s / USUAL_STREAM_S)
        weight_s = USUAL_STREAM_S * kept
        tokens = (weight_s / self.usual_s if self.usual_s else 0.0) + look.tokens
        if tokens:
            self.usual_s = ((weight_s if self.usual_s else 0.0) + look.stream_s) / tokens


class Paces(Generic[K]):
    """The paces of all endpoints. A look covers the time since the one before."""

    def __init__(self) -> None:
        self._paces: dict[K, _Pace] = {}

    def observe(
        self, key: K, now_s: float, span_s: float, streams: int, tokens: int, batch: int, told_s: float = 0.0
    ) -> None:
        """On `streams` streams came `tokens` tokens within `span_s` seconds, with `batch` streams in the engine.

        `told_s`: the interval that the endpoint itself has measured, to begin with; 0 if it has not.
        """
        crowd = 1.0 + SLOWDOWN_PER_STREAM * max(streams, batch)
        pace = self._paces.get(key)
        if pace is None:
            pace = self._paces[key] = _Pace(told_s / crowd)
        pace.looks.append(_Look(now_s, streams * span_s / crowd, tokens))

    def unfair(self, key: K) -> None:
        """The endpoint is full, or computes prompts, or nobody knows what came: this time says nothing."""
        pace = self._paces.get(key)
        if pace is not None:
            pace.looks.clear()
            pace.far_since_s = pace.held_since_s = None

    def judge(self, now_s: float) -> frozenset[K]:
        """Those that are slow now. Call it after each round of looks."""
        late: dict[K, float] = {}
        for key, pace in self._paces.items():
            self._age(pace, now_s)
            lateness = pace.lateness()
            if lateness is not None:
                late[key] = lateness
        for key, pace in self._paces.items():
            self._judge(pace, late.get(key), [other for each, other in late.items() if each != key], now_s)
        return frozenset(key for key, pace in self._paces.items() if pace.slow)

    def keep(self, keys: Collection[K]) -> None:
        """Forget all others."""
        for key in [key for key in self._paces if key not in keys]:
            del self._paces[key]

    @staticmethod
    def _age(pace: _Pace, now_s: float) -> None:
        """What leaves the window was as usual, unless the window since has been far slower."""
        usual = not pace.slow and (pace.far_since_s is None or now_s - pace.far_since_s > ACCEPT_S)
        while pace.looks and now_s - pace.looks[0].at_s >= WINDOW_S:
            look = pace.looks.popleft()
            if usual:
                pace.learn(look)

    @staticmethod
    def _judge(pace: _Pace, lateness: float | None, others: list[float], now_s: float) -> None:
        if lateness is None or lateness < FAR:
            pace.far_since_s = pace.held_since_s = None
            # A server that was emptied shows nothing: its breaker says when it is asked again.
            pace.slow = pace.slow and lateness is not None and lateness >= BACK
            return
        if pace.far_since_s is None:
            pace.far_since_s = now_s
        if others and lateness >= THAN_OTHERS * median(others):
            if pace.held_since_s is None:
                pace.held_since_s = now_s
            pace.slow = pace.slow or now_s - pace.held_since_s >= HOLD_S
        else:
            pace.held_since_s = None
