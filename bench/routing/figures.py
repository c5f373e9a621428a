"""A run's figures: goodput at the SLO, times to first token and between tokens, cache hits, balance."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.routing.mesh import Run
from bench.routing.workload import Workload

SLO_TTFT_S, SLO_ITL_S = 2.0, 0.05
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Figures:
    """Times in ms, shares in [0, 1]. Quantiles are p50, p90, p99."""

    requests: int
    good: int
    seconds: float
    ttft_ms: tuple[float, ...]
    itl_ms: tuple[float, ...]
    gap_ms: tuple[float, ...]
    cached_share: float
    ideal_cached_share: float
    imbalance: float
    moved: int
    cold_starts: int
    rejected: int
    preemptions: int
    # Median of |predicted - actual| / actual over first tokens; None for who predicts nothing.
    prediction_error: float | None

    @property
    def goodput(self) -> float:
        """Requests that had their first token and their pace within the SLO, for each second in which any came."""
        return self.good / self.seconds

    @property
    def good_share(self) -> float:
        """Of all requests."""
        return self.good / self.requests

    @property
    def within_slo(self) -> bool:
        """Whether the fleet as a whole kept it: at p90, and nothing was refused."""
        kept = self.ttft_ms[1] <= SLO_TTFT_S * 1e3 and self.itl_ms[1] <= SLO_ITL_S * 1e3
        return kept and self.rejected <= 0.01 * self.requests


def figures(workload: Workload, run: Run) -> Figures:
    """The figures of a run."""
    flights = run.flights
    done = [flight for flight in flights if flight.last_s is not None]
    good = 0
    for flight in done:
        itl_s = flight.itl_s
        in_time = flight.ttft_s is not None and flight.ttft_s <= SLO_TTFT_S
        good += in_time and (itl_s is None or itl_s <= SLO_ITL_S)
    began_s = workload.jobs[0].arrival_s
    predicted = [
        abs(flight.predicted_ms - flight.waited_ms) / flight.waited_ms
        for flight in done
        if flight.predicted_ms and flight.waited_ms and flight.attempts == 1
    ]
    prompt = sum(flight.job.prompt_tokens for flight in done)
    engines = [engine for server in run.servers for engine in server.engines.values()]
    gaps: dict[int, int] = {}
    for engine in engines:
        for gap_ms, count in engine.counts.gaps_ms.items():
            gaps[gap_ms] = gaps.get(gap_ms, 0) + count
    return Figures(
        requests=len(flights),
        good=good,
        # Not to the end of the last answer: how long that is depends on where one very long one ran.
        seconds=max(1.0, workload.jobs[-1].arrival_s - began_s),
        ttft_ms=_quantiles([flight.ttft_s * 1e3 for flight in done if flight.ttft_s is not None]),
        itl_ms=_quantiles([flight.itl_s * 1e3 for flight in done if flight.itl_s is not None]),
        gap_ms=_counted(gaps),
        cached_share=sum(flight.cached_tokens for flight in done) / prompt if prompt else 0.0,
        ideal_cached_share=workload.ideal_cached_share,
        imbalance=_imbalance(run.samples),
        moved=_moved(run),
        cold_starts=sum(server.residents.cold_starts for server in run.servers),
        rejected=sum(flight.rejected for flight in flights),
        preemptions=sum(engine.counts.preemptions for engine in engines),
        prediction_error=_quantiles(predicted)[0] if predicted else None,
    )


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    ordered = sorted(values)
    if not ordered:
        return (0.0,) * len(QUANTILES)
    return tuple(ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in QUANTILES)


def _counted(counts: dict[int, int]) -> tuple[float, ...]:
    """Quantiles of whole numbers that occur so often."""
    total, found = sum(counts.values()), []
    for quantile in QUANTILES:
        seen = 0
        for value in sorted(counts):
            seen += counts[value]
            if seen >= quantile * total:
                found.append(float(value))
                break
        else:
            found.append(0.0)
    return tuple(found)


def _imbalance(samples: Sequence[Sequence[int]]) -> float:
    """Mean over time of the fullest server's streams over the mean's, while there are at least as many as servers."""
    busy = [each for each in samples if sum(each) >= len(each)]
    return sum(max(each) * len(each) / sum(each) for each in busy) / len(busy) if busy else 1.0


def _moved(run: Run) -> int:
    """How often a session's request went to another server than the one before."""
    last: dict[str, str] = {}
    moved = 0
    for flight in sorted(run.flights, key=lambda flight: flight.dispatched_s):
        session = flight.job.session
        if session and flight.server:
            moved += last.get(session, flight.server) != flight.server
            last[session] = flight.server
    return moved
