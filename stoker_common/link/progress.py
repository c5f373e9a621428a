"""Whether a server's engine stands still, though its server says hello: its step counter tells. Pure.

Fed with what the link brings (the counter, the load) and with ticks. Waiting is no standstill: only while the server
reports streams that run does the counter have to move. A step may be long, a prompt's above all, so as long as a step
of this engine was seen to take is allowed twice, and what was to be prefilled when the step began is allowed on top.
"""

from typing import Protocol

# No step is believed to take longer: beyond, it is a standstill that ended.
_LONGEST_STEP_S = 4.0
# Allowed at most for prompts; a chunk of a prefill takes less.
_LONGEST_PREFILL_S = 3.0
# A long step is forgotten within minutes.
_FORGET_S = 120.0
# Signs of life with the same counter: one may have been sent before the step.
_SIGNS = 2


class Load(Protocol):
    """What a server's load tells of its engine."""

    @property
    def running(self) -> int:
        """Streams in the engine's batch."""

    @property
    def waiting_prompt_tokens(self) -> int:
        """Prompt tokens accepted and not yet computed."""

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens computed a second; 0 if not known."""


class Progress:
    """One link's view of its server's engine. As in `Silence`, a tick counts for `longest_tick_s` at most."""

    def __init__(self, limit_s: float, longest_tick_s: float, now_s: float) -> None:
        self._limit_s = limit_s
        self._longest_tick_s = longest_tick_s
        self._ticked_at_s = now_s
        self._step = -1
        self._still_s = 0.0
        self._signs = 0
        self._running = 0
        self._prefill_s = 0.0
        self._longest_s = 0.0

    def begin(self) -> None:
        """The link is up, perhaps to another life of the server."""
        self._step = -1
        self._running = 0
        self._moved()

    def sign(self, step: int, load: Load | None) -> bool:
        """The server said where its counter stands, and perhaps its load. Whether the counter has moved."""
        moved = step != self._step
        if moved:
            if self._step >= 0:
                self._longest_s = max(self._longest_s, min(self._still_s, _LONGEST_STEP_S))
            self._step = step
            self._moved()
        else:
            self._signs += 1
        if load is not None:
            self._running = load.running
            if self._signs <= 1 and load.prefill_tokens_per_second > 0.0:
                # Later reports count prompts that came when the step was under way.
                pending_s = load.waiting_prompt_tokens / load.prefill_tokens_per_second
                self._prefill_s = max(self._prefill_s, min(pending_s, _LONGEST_PREFILL_S))
        return moved

    def tick(self, now_s: float, streams: int) -> bool:
        """Time has passed, with so many streams of ours there. Whether the engine has stood still for too long."""
        passed_s = min(max(0.0, now_s - self._ticked_at_s), self._longest_tick_s)
        self._ticked_at_s = now_s
        self._longest_s *= max(0.0, 1.0 - passed_s / _FORGET_S)
        if not streams or not self._running:
            self._moved()
            return False
        self._still_s += passed_s
        return self._signs >= _SIGNS and self._still_s > self._allowed_s

    @property
    def _allowed_s(self) -> float:
        return max(self._limit_s, 2.0 * self._longest_s) + self._prefill_s

    def _moved(self) -> None:
        self._still_s = 0.0
        self._signs = 0
        self._prefill_s = 0.0
