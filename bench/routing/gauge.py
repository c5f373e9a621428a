"""What a simulated engine's steps tell its meter, as seldom as a real server's do."""

from model_server.meter import Meter

# A real server settles once a second, and does not judge by fewer steps.
_SPELL_MS, _FEWEST = 1e3, 4


class Gauge:
    """One engine's."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        # Tokens decoded since the last settling, and the time that each took.
        self._decoded_ms = self._decoded = 0.0
        # Of the steps since a prompt was computed: how many, how long, tokens in contexts.
        self._alone = (0, 0.0, 0)

    def step(self, ms: float, decodes: int, context: int, *, prompts: bool) -> None:
        """A step is over, in which so many streams with so many tokens in their contexts went on."""
        if prompts:
            self._spell()
        elif decodes:
            steps, took_ms, tokens = self._alone
            self._alone = (steps + 1, took_ms + ms, tokens + context)
        self._decoded_ms += ms * decodes
        self._decoded += decodes

    def settle(self, now_s: float) -> None:
        """A report is due: the meter hears of what was decoded."""
        if self._decoded:
            self._meter.itl.add(self._decoded_ms / 1e3, self._decoded, now_s)
            self._decoded_ms = self._decoded = 0.0
        if self._alone[1] >= _SPELL_MS:
            self._spell()

    def _spell(self) -> None:
        """What a while of decoding alone shows."""
        steps, took_ms, context = self._alone
        if steps >= _FEWEST:
            self._meter.decoded(context / steps, took_ms / steps / 1e3)
        self._alone = (0, 0.0, 0)
