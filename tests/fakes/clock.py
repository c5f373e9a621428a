"""A clock that tests hold."""


class FakeClock:
    """A `Clock` (monotonic seconds) that moves when told to."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        self.now_s += seconds
