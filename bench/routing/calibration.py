"""Speeds from a calibration of a real engine, as `python -m bench.calibrate` writes it.

Least squares over relative errors, in two steps: what a step takes by the streams in it, from the times between tokens;
then what prompts take on top of it, from times to first tokens, for each of the sizes that steps may have. Of these
that one is taken whose steps among running streams last as long as they did there.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy

from bench.calibrate import PROMPT_TOKENS as STREAMS_PROMPT
from bench.routing.speeds import Speeds

_BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class Fitted:
    """The speeds, and how far off they are: root mean squares of relative errors."""

    speeds: Speeds
    decode_error: float
    prefill_error: float
    # The measured gap between tokens while long prompts came, over the fitted one.
    mixed_gap: float


def read(path: Path) -> Speeds:
    """A server's speeds from a file: an engine's calibration, or an object "speeds" with some of the fields themselves.

    Raises ValueError.
    """
    told = json.loads(path.read_text())
    given = told.get("speeds") if isinstance(told, dict) else None
    if given is None and isinstance(told, dict) and "decode" in told:
        return fit(told, Speeds()).speeds
    known = {field.name for field in fields(Speeds)}
    if not isinstance(given, dict) or not given.keys() <= known:
        raise ValueError(
            f'{path} is no calibration of bench.calibrate, and has no object "speeds" with some of {sorted(known)}'
        )
    return Speeds(**given)


def fit(measured: Mapping[str, Any], otherwise: Speeds) -> Fitted:
    """The engine's speeds. What was not measured is as `otherwise`. Raises ValueError if there is too little."""
    try:
        base_ms, stream_ms, decode_error = _decode(measured["decode"])
        found = [_prefill(measured, base_ms, stream_ms, budget) for budget in _BUDGETS]
    except (KeyError, TypeError, numpy.linalg.LinAlgError) as error:
        raise ValueError(f"not a calibration as bench.calibrate writes it: {error!r}") from error
    usable = [(abs(math.log(gap)), *rest, gap) for *rest, gap in found if gap > 0]
    if not usable:
        raise ValueError("no size of steps explains the calibration's times to first tokens")
    _, budget, rate, attention, prefill_error, gap = min(usable)
    # Reading the caches of streams as short as those cannot be told from the streams themselves.
    context_ms = STREAMS_PROMPT * otherwise.step_per_context_token_ms
    speeds = replace(
        otherwise,
        step_base_ms=round(base_ms, 2),
        step_per_stream_ms=round(max(0.0, stream_ms - context_ms), 4),
        prefill_tokens_per_ms=round(rate, 1),
        attention_tokens=round(attention, -2),
        max_batched_tokens=int(budget),
        kv_tokens=measured["kv_tokens"],
        max_streams=measured["max_streams"],
    )
    return Fitted(speeds, decode_error, prefill_error, gap)


def _decode(points: Sequence[Mapping[str, float]]) -> tuple[float, float, float]:
    """What a step takes, what each stream adds, and the error."""
    rows = [[1.0, point["streams"]] for point in points]
    (base_ms, stream_ms), error = _least_squares(rows, [point["itl_p50_ms"] for point in points], 0.0)
    return base_ms, stream_ms, error


def _prefill(
    measured: Mapping[str, Any], base_ms: float, stream_ms: float, budget: int
) -> tuple[int, float, float, float, float]:
    """Budget, tokens a ms, tokens at which attention costs as much again, error, and the gap's quotient (0: no fit)."""
    rows, took, steps = [], [], []
    for each in measured["prefill"]:
        tokens = each["prompt_tokens"]
        rows.append([1.0, tokens, tokens**2 / 2])
        took.append(each["ttft_ms"])
        steps.append(math.ceil(tokens / budget) * base_ms)
    for each in measured["mixed"]:
        tokens, streams = each["long_prompt_tokens"], each["streams"]
        rows += [[1.0, tokens, tokens**2 / 2]] * len(each["long_ttft_ms"])
        took += each["long_ttft_ms"]
        step_ms = base_ms + stream_ms * streams
        steps += [math.ceil(tokens / (budget - streams)) * step_ms] * len(each["long_ttft_ms"])
    (_, token_ms, square_ms), error = _least_squares(rows, took, steps)
    if token_ms <= 0 or square_ms <= 0:
        return budget, 0.0, 0.0, error, 0.0
    gaps = [
        each["during"]["itl_p50_ms"]
        / (base_ms + stream_ms * each["streams"] + min(budget - each["streams"], each["long_prompt_tokens"]) * token_ms)
        for each in measured["mixed"]
    ]
    return budget, 1 / token_ms, token_ms / square_ms, error, math.prod(gaps) ** (1 / len(gaps)) if gaps else 1.0


def _least_squares(
    rows: Sequence[Sequence[float]], took: Sequence[float], known: Sequence[float] | float
) -> tuple[list[float], float]:
    """Factors of the columns that explain `took` less what is known of it, and the root mean square relative error."""
    if not rows or len(rows) < len(rows[0]):
        raise ValueError("the calibration has too few points to fit speeds to")
    times = numpy.array(took, dtype=float)
    weights = 1.0 / times
    columns = numpy.array(rows, dtype=float)
    found = numpy.linalg.lstsq(columns * weights[:, None], (times - known) * weights, rcond=None)[0]
    errors = (columns @ found + known - times) * weights
    return [float(each) for each in found], float(numpy.sqrt(numpy.mean(errors**2)))
