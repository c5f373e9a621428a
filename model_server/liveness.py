"""Whether a server may serve: a state machine fed with readings and probe results, and with nothing else.

                first probe came back              asked to leave
    STARTING ───────────────────────► SERVING ───────────────────► DRAINING
        │                                │                             │
        └────────────┬───────────────────┴─────────────────────────────┘
                     ▼
       STUCK · DEAD · DEVICE_LOST        (final: a server that is in one of them leaves)

While the engine has work, its step counter is the life sign: silence for `stuck_after_s` is STUCK. While it has none,
a probe generation is asked for every `probe_interval_s`, and one that is not back after `probe_timeout_s` is STUCK. A
probe that waits behind real work is judged by the step counter alone: a long queue is no reason to leave.

Silence is summed over readings, and between two readings at most `longest_gap_s` counts: a server that was itself
stopped or whose event loop was blocked must not take its own absence for the engine's.
"""

from dataclasses import dataclass
from enum import Enum


class LifeState(Enum):
    """Whether a server may serve."""

    STARTING = "starting"
    SERVING = "serving"
    STUCK = "stuck"
    DEAD = "dead"
    DEVICE_LOST = "device_lost"
    DRAINING = "draining"

    @property
    def failed(self) -> bool:
        """Whether there is no way back from here."""
        return self in (LifeState.STUCK, LifeState.DEAD, LifeState.DEVICE_LOST)


@dataclass(frozen=True, slots=True)
class LivenessRules:
    """The limits, in seconds. `longest_gap_s` is what silence counts at most between two readings."""

    probe_interval_s: float = 5.0
    probe_timeout_s: float = 10.0
    stuck_after_s: float = 10.0
    first_probe_timeout_s: float = 120.0
    longest_gap_s: float = 1.0


class Liveness:
    """The state, its reason, and whether a probe is due. Times are readings of one monotonic clock, in seconds."""

    def __init__(self, rules: LivenessRules, now: float) -> None:
        self._rules = rules
        self._state = LifeState.STARTING
        self._reason = "loading the model"
        self._started = False
        self._steps: int | None = None
        self._read_at = now
        self._was_busy = False
        self._silent_s = 0.0
        self._since_sign_s = 0.0
        self._probing_s: float | None = None

    @property
    def state(self) -> LifeState:
        """The state."""
        return self._state

    @property
    def reason(self) -> str:
        """Why it is in this state, a line for operators."""
        return self._reason

    @property
    def started(self) -> bool:
        """Whether it ever got past STARTING."""
        return self._started

    def read(self, now: float, *, steps: int, busy: bool) -> None:
        """Take a reading: the engine's step counter, and whether it has work other than a probe."""
        elapsed = max(0.0, min(now - self._read_at, self._rules.longest_gap_s))
        self._read_at = now
        moved = self._steps is not None and steps != self._steps
        self._steps = steps
        if moved:
            self._since_sign_s = 0.0
        else:
            self._since_sign_s += elapsed
        # Work that came since the last reading gets its whole time: the silence before it was idleness.
        self._silent_s = 0.0 if moved or not busy or not self._was_busy else self._silent_s + elapsed
        self._was_busy = busy
        if busy and self._silent_s > self._rules.stuck_after_s:
            self._fail(LifeState.STUCK, f"the engine has work and made no step for {self._silent_s:.1f} s")
        if self._probing_s is not None:
            # Behind real work its time does not count, nor does it once that work has ended.
            self._probing_s = 0.0 if busy else self._probing_s + elapsed
            self._judge_probe(self._probing_s)

    def _judge_probe(self, probing_s: float) -> None:
        limit_s = self._rules.probe_timeout_s if self.started else self._rules.first_probe_timeout_s
        if probing_s > limit_s:
            self._fail(LifeState.STUCK, f"a probe generation did not come back within {limit_s:g} s")

    def probe_due(self) -> bool:
        """Whether a probe should begin now."""
        if self._state.failed or self._probing_s is not None:
            return False
        return not self.started or (not self._was_busy and self._since_sign_s >= self._rules.probe_interval_s)

    def probe_began(self) -> None:
        """A probe began."""
        self._probing_s = 0.0

    def probe_came_back(self) -> None:
        """The probe ended as it should. The first one ends STARTING."""
        self._probing_s = None
        self._since_sign_s = 0.0
        self._started = True
        if self._state is LifeState.STARTING:
            self._become(LifeState.SERVING, "probe generation came back")

    def probe_failed(self, why: str) -> None:
        """The probe ended in an error: the engine answers, and cannot generate."""
        self._probing_s = None
        self._fail(LifeState.DEAD, f"a probe generation failed: {why}")

    def died(self, why: str) -> None:
        """The engine said that it is dead."""
        self._fail(LifeState.DEAD, why)

    def device_lost(self, why: str) -> None:
        """The accelerator is gone."""
        self._fail(LifeState.DEVICE_LOST, why)

    def serves(self, why: str) -> None:
        """Of a server: all its first engines answer."""
        self._started = True
        if self._state is LifeState.STARTING:
            self._become(LifeState.SERVING, why)

    def fails_as(self, engine: "Liveness") -> None:
        """Of a server: one of its engines failed, and how."""
        self._fail(engine.state, engine.reason)

    def drain(self, why: str) -> None:
        """The server was asked to leave."""
        if not self._state.failed:
            self._become(LifeState.DRAINING, why)

    def _fail(self, state: LifeState, why: str) -> None:
        # The first failure is the cause; what follows are its consequences.
        if not self._state.failed:
            self._become(state, why)

    def _become(self, state: LifeState, why: str) -> None:
        self._state = state
        self._reason = why
