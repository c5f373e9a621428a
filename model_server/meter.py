"""What a server measures of its engine: prompt tokens a second, time between tokens, prompt tokens that wait.

A sequence costs two attribute writes per output; everything else happens when one begins, gives its first output, ends,
or once a second in `settle`.
"""

import time
from collections.abc import Callable, Sequence

from model_server.attention import AttentionFit
from model_server.slope import SureSlope
from stoker_common.line import DecayedLine
from stoker_common.prompt_work import prompt_work

# Shorter prompts take one step whatever their length: alone they say nothing of the rate.
_SHORTEST_PROMPT_TOKENS = 128
# Prompts whose first outputs come so close together were computed in one step.
_SAME_STEP_S = 0.001
# Old enough to be stable over a few requests, young enough to follow a change of load.
_HALF_LIFE_S = 10.0
# What belongs to the model and its device alone, and shows now and then.
_LASTING_HALF_LIFE_S = 300.0
# A spell of decoding alone tells what a step takes if so many tokens of each stream came in it.
_SPELL_TOKENS = 4


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
        "_prompt_work",
        "_settled_at",
        "_settled_tokens",
        "first_at",
        "last_at",
        "tokens",
    )

    def __init__(self, meter: "Meter", prompt_tokens: int, prompt_work: float) -> None:
        self._meter = meter
        self._prompt_tokens = prompt_tokens
        self._prompt_work = prompt_work
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
            self._meter.prompt_done(self._prompt_tokens, cached_tokens, self._prompt_work, now, prefill_ms)

    @property
    def later_tokens(self) -> int:
        """Tokens after the first output's."""
        return self.tokens - self._first_tokens

    @property
    def later_s(self) -> float:
        """From the first output to the last so far."""
        return self.last_at - self.first_at if self.first_at is not None else 0.0

    @property
    def context_tokens(self) -> int:
        """Tokens that it attends to."""
        return self._prompt_tokens + self.tokens

    def settle(self, now: float) -> tuple[int, float]:
        """Fold what came since the last time into the meter's time between tokens; returns tokens and seconds."""
        came, took_s = self.tokens - self._settled_tokens, self.last_at - self._settled_at
        if came <= 0:
            return 0, 0.0
        self._meter.itl.add(took_s, came, now)
        self._settled_at = self.last_at
        self._settled_tokens = self.tokens
        return came, took_s

    def end(self) -> None:
        """The sequence is off the engine, however it ended. Idempotent."""
        if self._ended:
            return
        self._ended = True
        now = self._meter.now()
        if self.first_at is None:
            self._meter.prompt_dropped(self._prompt_work, now)
        self.settle(now)
        self._meter.sequences.discard(self)


class Meter:
    """The rates of one engine. `full` tells whether its batch has no free place: then waiting is not computing."""

    def __init__(self, now: Callable[[], float] = time.monotonic, full: Callable[[], bool] = lambda: False) -> None:
        self.now = now
        self.sequences: set[SequenceMeter] = set()
        self.itl = DecayedRatio(_HALF_LIFE_S)
        self._prefill = DecayedLine(_HALF_LIFE_S)
        self._attention = AttentionFit()
        self._steps = SureSlope(_LASTING_HALF_LIFE_S)
        # Whether a prompt was computed since the last settling: then times between tokens are not decoding's alone.
        self._computed = False
        # Whether a prompt long enough to tell a rate was among them.
        self._told = False
        self._full = full
        self._waiting_work = 0.0
        self._waiting_sequences = 0
        self._computing_since = 0.0

    def begin(self, prompt_tokens: int) -> SequenceMeter:
        """A sequence was given to the engine; call `end` on the result in a `finally`."""
        if self._waiting_sequences == 0:
            self.settle()
            self._computing_since = self.now()
        self._waiting_sequences += 1
        work = prompt_work(prompt_tokens, 0, self.attention_tokens)
        self._waiting_work += work
        sequence = SequenceMeter(self, prompt_tokens, work)
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

    def prompt_done(
        self, prompt_tokens: int, cached_tokens: int, work: float, now: float, prefill_ms: float | None = None
    ) -> None:
        """A prompt gave its first output: what was computed since the last one did, was computed in that time, or in
        what the engine says it took: without the wait for the step that ran, and the way. `work`: what it was counted
        for while it waited."""
        computed = prompt_tokens - cached_tokens
        computed_work = prompt_work(computed, cached_tokens, self.attention_tokens)
        elapsed = now - self._computing_since
        if computed > 0 and not self._full():
            if elapsed > _SAME_STEP_S:
                own_s = elapsed if prefill_ms is None else min(elapsed, prefill_ms / 1e3)
                self._prefill.add(computed_work, own_s, now)
                self._attention.add(computed, cached_tokens, own_s, now)
            elif self._told:
                self._prefill.extend(computed_work)
                self._attention.extend(computed, cached_tokens)
            self._told = self._told or computed >= _SHORTEST_PROMPT_TOKENS
        self._leave_queue(work, now)

    def prompt_dropped(self, work: float, now: float) -> None:
        """A prompt was given up before its first output."""
        self._leave_queue(work, now)

    def decoded(self, context_tokens: float, step_s: float) -> None:
        """For a while no prompt was computed, and steps with so many tokens in their streams' contexts took so long."""
        if context_tokens > 0 and step_s > 0.0:
            self._steps.add(context_tokens, step_s, self.now())

    def _leave_queue(self, work: float, now: float) -> None:
        self._computing_since = now
        self._waiting_sequences -= 1
        self._waiting_work -= work
        self._computed = True
        if self._waiting_sequences == 0:
            self._waiting_work = 0.0  # no rounding is left
            self.settle()

    def settle(self) -> None:
        """Bring the time between tokens up to date. Call it about once a second."""
        now, tokens, took_s = self.now(), 0, 0.0
        for sequence in self.sequences:
            came, in_s = sequence.settle(now)
            tokens, took_s = tokens + came, took_s + in_s
        if tokens and not self._computed and tokens >= _SPELL_TOKENS * len(self.sequences):
            self.decoded(self.context_tokens, took_s / tokens)
        self._computed = self._waiting_sequences > 0

    @property
    def busy(self) -> bool:
        """Whether the engine owes anybody an output. A reader who is slow keeps none from it."""
        return bool(self.sequences)

    @property
    def waiting_prompt_tokens(self) -> int:
        """Prompt tokens accepted and not yet computed, in tokens that take as long as a prompt's first; cached ones
        count until the first output tells them apart."""
        return round(self._waiting_work)

    @property
    def attention_tokens(self) -> float:
        """How far from its prompt's beginning a token takes twice as long to compute; 0 while not known."""
        return self._attention.tokens

    @property
    def context_tokens(self) -> int:
        """Tokens that all sequences attend to, each for itself."""
        return sum(sequence.context_tokens for sequence in self.sequences)

    @property
    def step_ms_per_context_token(self) -> float:
        """What a step that computes no prompt takes for each of them; 0 while not known."""
        return self._steps.value * 1e3

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens computed a second while computing prompts, of those at a prompt's beginning, beside what a step
        takes anyway; 0 if not known."""
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
    def attention_tokens(self) -> float:
        """See Meter; of the one whose tokens take more the soonest."""
        return min((tokens for meter in self._meters if (tokens := meter.attention_tokens)), default=0.0)

    @property
    def context_tokens(self) -> int:
        """See Meter; of all."""
        return sum(meter.context_tokens for meter in self._meters)

    @property
    def step_ms_per_context_token(self) -> float:
        """See Meter; of the slowest."""
        return max((meter.step_ms_per_context_token for meter in self._meters), default=0.0)

    @property
    def itl_ms(self) -> float:
        """See Meter; of the slowest."""
        return max((meter.itl_ms for meter in self._meters), default=0.0)
