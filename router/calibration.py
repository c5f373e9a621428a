"""How far predicted times to first token were from the actual ones, of late: by server and model, and term by term.

A prediction that is off sends requests to the wrong server, and which term errs says what to look at: `queue` the
counting of what waits there, `prefill` the measured rate or what was believed to be cached, `ready` the time to load
or wake, `rest` the ways and what no term speaks of.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType
from typing import NamedTuple

from router.first_tokens import Expectation
from router.ledger import Key
from stoker.v1 import inference_pb2
from stoker_common.clock import Clock

# Enough for a median, few enough to follow a change.
MOST = 128
WINDOW_S = 600.0
TERMS = ("ready", "queue", "prefill", "rest")


class Term(NamedTuple):
    """One term of one request, in ms."""

    predicted_ms: float
    actual_ms: float


class Sample(NamedTuple):
    """One request: the time from its dispatch to its first token, in ms. `terms`: none where its server cannot tell."""

    predicted_ms: float
    actual_ms: float
    terms: Mapping[str, Term] = MappingProxyType({})

    @property
    def off(self) -> float:
        """How far the prediction was off, as a share of the actual time; above 0: it came sooner than predicted."""
        return (self.predicted_ms - self.actual_ms) / self.actual_ms


def sample(expected: Expectation, actual_ms: float, timings: inference_pb2.Timings) -> Sample:
    """What a finished request shows whose first token came after `actual_ms`."""
    if not timings.HasField("prefill"):
        return Sample(expected.total_ms, actual_ms)
    load, queue, prefill = (each.ToNanoseconds() / 1e6 for each in (timings.load, timings.queue, timings.prefill))
    terms = {
        "ready": Term(expected.ready_ms, load),
        "queue": Term(expected.queue_ms, queue),
        "prefill": Term(expected.prefill_ms, prefill),
        "rest": Term(expected.rest_ms, actual_ms - load - queue - prefill),
    }
    return Sample(expected.total_ms, actual_ms, terms)


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over the recent requests of a model on a server. `error` and `bias` are shares of the actual time."""

    model: str
    requests: int
    error: float
    bias: float
    # By term: predicted, actual, and how far off either way, in ms.
    terms: Mapping[str, tuple[float, float, float]]


class Calibration:
    """The recent requests by server and model. Some 30 KB for each of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: dict[Key, dict[str, deque[tuple[float, Sample]]]] = {}

    def observe(self, key: Key, model: str, seen: Sample) -> None:
        """A request has finished."""
        if seen.actual_ms <= 0.0:
            return
        by_model = self._samples.setdefault(key, {})
        by_model.setdefault(model, deque(maxlen=MOST)).append((self._clock(), seen))

    def figures(self, key: Key) -> list[Figures]:
        """One for each model of which there are recent requests there, by name."""
        since_s = self._clock() - WINDOW_S
        recent = {
            model: [seen for at_s, seen in samples if at_s >= since_s]
            for model, samples in self._samples.get(key, {}).items()
        }
        return [_figures(model, samples) for model, samples in sorted(recent.items()) if samples]

    def keep(self, keys: Collection[Key]) -> None:
        """Forget servers that are gone."""
        self._samples = {key: samples for key, samples in self._samples.items() if key in keys}


def _figures(model: str, samples: Iterable[Sample]) -> Figures:
    samples = list(samples)
    off = [seen.off for seen in samples]
    told = [seen.terms for seen in samples if seen.terms]
    terms = {
        name: (
            median(terms[name].predicted_ms for terms in told),
            median(terms[name].actual_ms for terms in told),
            median(abs(terms[name].predicted_ms - terms[name].actual_ms) for terms in told),
        )
        for name in (TERMS if told else ())
    }
    return Figures(model, len(samples), median(map(abs, off)), median(off), terms)
