"""What a server measures of its engine: prompt tokens a second, time between tokens, prompt tokens that wait.

A sequence costs two attribute writes per output; everything else happens when one begins, gives its first output, ends,
or once a second in `settle`.
"""

import time
from collections.abc import Callable, Sequence

from stoker_common.line import DecayedLine

# Shorter prompts take one step whatever their length: alone they say nothing of the rate.
_SHORTEST_PROMPT_TOKENS = 128
# Prompts whose first outputs come so close together were computed in one step.
_SAME_STEP_S = 0.001
# Old enough to be stable over a few requests, young enough to follow a change of load.
_HALF_LIFE_S = 10.0


class DecayedRatio:
    """A ratio of two sums whose older contributions count half as much every `half_life_s`."""

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._over = 0.0
        self._under = 0.0
        self._at = 0.0

    def add(self, over: float, under: float, now: float) -> None:
        """Add a sample of `over / under`, weighted by `under`."""
        kept = 0.5 ** ((now - self._at) / self._half_life_s)
        self._over = self._over * kept + over
        self._under = self._under * kept + under
        self._at = now

    @property
    def value(self) -> float:
        """The ratio, or 0 while nothing was added. Age alone does not change it."""
        return self._over / self._under if self._under > 0.0 else 0.0


class SequenceMeter:
    """One sequence on the engine. Whoever relays it calls `output` for each output, and `end` behind the last."""

    __slots__ = (
        "_ended",
        "_first_tokens",
        "_meter",
        "_prompt_tokens",
        "_settled_at",
        "_settled_tokens",
        "first_at",
        "last_at",
        "tokens",
    )

    def __init__(self, meter: "Meter", prompt_tokens: int) -> None:
        self._meter = meter
        self._prompt_tokens = prompt_tokens
        self._settled_at = 0.0
        self._settled_tokens = 0
        self._ended = False
        self._first_tokens = 0
        self.tokens = 0
        self.first_at: float | None = None
        self.last_at = 0.0

    def output(self, tokens: int, cached_tokens: int, now: float, prefill_ms: float | None = None) -> None:
        """An output of `tokens` tokens came at `now`; `prefill_ms`: how long the engine itself computed the prompt."""
        self.tokens += tokens
        self.last_at = now
        if self.first_at is None:
            self.first_at = now
            self._settled_at = now
            self._settled_tokens = self._first_tokens = tokens
            self._meter.prompt_done(self._prompt_tokens, cached_tokens, now, prefill_ms)

    @property
    def later_tokens(self) -> int:
        """Tokens after the first output's."""
        return self.tokens - self._first_tokens

    @property
    def later_s(self) -> float:
        """From the first output to the last so far."""
        return self.last_at - self.first_at if self.first_at is not None else 0.0

    def settle(self, now: float) -> None:
        """Fold what came since the last time into the meter's time between tokens."""
        came = self.tokens - self._settled_tokens
        if came > 0:
            self._meter.itl.add(self.last_at - self._settled_at, came, now)
            self._settled_at = self.last_at
            self._settled_tokens = self.tokens

    def end(self) -> None:
        """The sequence is off the engine, however it ended. Idempotent."""
        if self._ended:
            return
        self._ended = True
        now = self._meter.now()
        if self.first_at is None:
            self._meter.prompt_dropped(self._prompt_tokens, now)
        self.settle(now)
        self._meter.sequences.discard(self)


class Meter:
    """The rates of one engine. `full` tells whether its batch has no free place: then waiting is not computing."""

    def __init__(self, now: Callable[[], float] = time.monotonic, full: Callable[[], bool] = lambda: False) -> None:
        self.now = now
        self.sequences: set[SequenceMeter] = set()
        self.itl = DecayedRatio(_HALF_LIFE_S)
        self._prefill = DecayedLine(_HALF_LIFE_S)
        # Whether a prompt long enough to tell a rate was among them.
        self._told = False
        self._full = full
        self._waiting_tokens = 0
        self._waiting_sequences = 0
        self._computing_since = 0.0

    def begin(self, prompt_tokens: int) -> SequenceMeter:
        """A sequence was given to the engine; call `end` on the result in a `finally`."""
        if self._waiting_sequences == 0:
            self._computing_since = self.now()
        self._waiting_sequences += 1
        self._waiting_tokens += prompt_tokens
        sequence = SequenceMeter(self, prompt_tokens)
        self.sequences.add(sequence)
        return sequence

    def measured(self, *, prompt_tokens: int, prefill_s: float, later_tokens: int, later_s: float) -> None:
        """Take what a generation that ran alone showed, so that a server that nobody has used has rates to report."""
        now = self.now()
        if prefill_s > 0.0:
            self._prefill.add(prompt_tokens, prefill_s, now)
            self._told = True
        if later_tokens > 0:
            self.itl.add(later_s, later_tokens, now)

    def prompt_done(self, prompt_tokens: int, cached_tokens: int, now: float, prefill_ms: float | None = None) -> None:
        """A prompt gave its first output: what was computed since the last one did, was computed in that time, or in
        what the engine says it took: without the wait for the step that ran, and the way."""
        computed = prompt_tokens - cached_tokens
        elapsed = now - self._computing_since
        if computed > 0 and not self._full():
            if elapsed > _SAME_STEP_S:
                own_s = elapsed if prefill_ms is None else min(elapsed, prefill_ms / 1e3)
                self._prefill.add(computed, own_s, now)
            elif self._told:
                self._prefill.extend(computed)
            self._told = self._told or computed >= _SHORTEST_PROMPT_TOKENS
        self._leave_queue(prompt_tokens, now)

    def prompt_dropped(self, prompt_tokens: int, now: float) -> None:
        """A prompt was given up before its first output."""
        self._leave_queue(prompt_tokens, now)

    def _leave_queue(self, prompt_tokens: int, now: float) -> None:
        self._computing_since = now
        self._waiting_sequences -= 1
        self._waiting_tokens -= prompt_tokens

    def settle(self) -> None:
        """Bring the time between tokens up to date. Call it about once a second."""
        now = self.now()
        for sequence in self.sequences:
            sequence.settle(now)

    @property
    def busy(self) -> bool:
        """Whether the engine owes anybody an output. A reader who is slow keeps none from it."""
        return bool(self.sequences)

    @property
    def waiting_prompt_tokens(self) -> int:
        """Prompt tokens accepted and not yet computed; cached ones count until the first output tells them apart."""
        return self._waiting_tokens

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens computed a second while computing prompts, beside what a step takes anyway; 0 if not known."""
        slope = self._prefill.slope if self._told else 0.0
        return 1.0 / slope if slope > 0.0 else 0.0

    @property
    def itl_ms(self) -> float:
        """Time between two tokens of one stream, or 0 while not known."""
        return self.itl.value * 1000.0


class Meters:
    """The meters of all of a server's engines, as one. Rates are the slowest's: what waits may be before that one."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        self._meters = tuple(meters)

    @property
    def sequences(self) -> int:
        """Sequences on the engines."""
        return sum(len(meter.sequences) for meter in self._meters)

    def settle(self) -> None:
        """See Meter."""
        for meter in self._meters:
            meter.settle()

    @property
    def waiting_prompt_tokens(self) -> int:
        """See Meter; of all."""
        return sum(meter.waiting_prompt_tokens for meter in self._meters)

    @property
    def prefill_tokens_per_second(self) -> float:
        """See Meter; of the slowest."""
        return min((rate for meter in self._meters if (rate := meter.prefill_tokens_per_second)), default=0.0)

    @property
    def itl_ms(self) -> float:
        """See Meter; of the slowest."""
        return max((meter.itl_ms for meter in self._meters), default=0.0)
