"""Which of a router's streams get nothing though the engine works on them: told to the router, which moves them."""

from collections.abc import Mapping

from discovery.endpoint import Load

LOOK_EVERY_S = 0.5
# An output may still be on its way from the step that was counted last.
_STEPS_BETWEEN = 2


class Progress:
    """One request's outputs, as its engine gave them: also those that its client has already."""

    __slots__ = ("outputs",)

    def __init__(self) -> None:
        self.outputs = 0


class Watch:
    """Looks at all streams of a link every 0.5 s.

    No engine says which sequences a step worked on, but where none waits, all of them run, and each that is past its
    prompt gets a token with every step. So a stream is idle that got none between two looks with steps between them,
    while nothing waited at either.
    """

    def __init__(self) -> None:
        self._looked_at_s = 0.0
        self._step = 0
        self._all_ran = False
        self._seen: dict[int, int] = {}

    def due(self, now_s: float, step: int) -> bool:
        """Whether it is time to look."""
        return now_s - self._looked_at_s >= LOOK_EVERY_S and step >= self._step + _STEPS_BETWEEN

    def look(self, now_s: float, step: int, load: Load, streams: Mapping[int, Progress]) -> list[int]:
        """The idle streams."""
        all_run = not load.waiting
        idle = [
            stream_id
            for stream_id, progress in streams.items()
            if all_run and self._all_ran and progress.outputs and progress.outputs == self._seen.get(stream_id)
        ]
        self._looked_at_s, self._step, self._all_ran = now_s, step, all_run
        self._seen = {stream_id: progress.outputs for stream_id, progress in streams.items()}
        return idle
