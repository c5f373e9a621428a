"""Coarse steps: what is written into the catalog moves seldom, because every change costs a Raft write."""

import math
from dataclasses import replace

from discovery.endpoint import Endpoint, Load

# Preferred numbers (IEC 60063): steps of about 1.5 and 1.2 times, and short to read.
_E6 = (1.0, 1.5, 2.2, 3.3, 4.7, 6.8)
_E12 = (1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2)


def coarse_share(share: float) -> float:
    """The nearest tenth, within [0, 1]. A share that is not a number reads as 0."""
    if math.isnan(share):
        return 0.0
    return math.floor(min(max(share, 0.0), 1.0) * 10 + 0.5) / 10


def coarse_count(count: int) -> int:
    """The nearest of 0, 1, 2, 3, 5, 7, 10, 15, 22, 33, 47, 68, 100, ...: steps of about 1.5 times."""
    return round(_preferred(float(count), _E6))


def coarse_rate(rate: float) -> float:
    """The nearest of the E12 series: steps of about 1.2 times. 0 stays 0: not known."""
    return _preferred(rate, _E12)


def coarse_load(load: Load) -> Load:
    """`load` in coarse steps. Idempotent."""
    return Load(
        running=coarse_count(load.running),
        waiting=coarse_count(load.waiting),
        kv_usage=coarse_share(load.kv_usage),
        utilization=coarse_share(load.utilization),
        memory_usage=coarse_share(load.memory_usage),
        waiting_prompt_tokens=coarse_count(load.waiting_prompt_tokens),
        prefill_tokens_per_second=coarse_rate(load.prefill_tokens_per_second),
        itl_ms=coarse_rate(load.itl_ms),
    )


def coarse_endpoint(endpoint: Endpoint) -> Endpoint:
    """`endpoint` with what is measured in it in coarse steps. Idempotent."""
    models = tuple(replace(model, time_to_ready_ms=coarse_rate(model.time_to_ready_ms)) for model in endpoint.models)
    return replace(endpoint, models=models, load=coarse_load(endpoint.load))


# Below a thousandth a rate is as good as none; above 1e15 it is a fault of whoever measured it.
_SMALLEST, _LARGEST = 1e-3, 1e15


def _preferred(value: float, series: tuple[float, ...]) -> float:
    if math.isnan(value) or value < _SMALLEST:
        return 0.0
    value = min(value, _LARGEST)
    exponent = math.floor(math.log10(value))
    # Written as text and read back, so that every step is the same float however it was come by.
    steps = (float(f"{step}e{power}") for power in (exponent - 1, exponent, exponent + 1) for step in series)
    return min(steps, key=lambda step: abs(math.log(step / value)))
