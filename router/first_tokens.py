"""When a first token is expected, learned by server and model from when first tokens came. For predictions alone.

The time is a straight line over the prompt tokens that have to be computed for it, those ahead of it included, each
counted for what it takes (stoker_common/prompt_work.py): what any first token takes there (the wait for the step that
runs, a step, the server's loop, the way), and so much a token.
Which server a request goes to is decided by costs (router/scorers.py), and nothing learned here changes one: what is
off today cannot send tomorrow's requests elsewhere, and routers that learn the same cannot herd.
"""

from collections import deque
from collections.abc import Collection
from statistics import median
from typing import NamedTuple

from router.ledger import Account, Key
from router.scorers import Cost
from stoker.v1 import inference_pb2
from stoker_common.line import DecayedLine

# Old enough to be stable over some requests, young enough to follow a change of load; where requests are rare, the
# latest of them whatever their age.
_HALF_LIFE_S, _LEAST_POINTS = 30.0, 16
# Of what any first token takes: the median of the latest, so that single odd ones do not count.
_MOST_POINTS = 64
# Who comes later than so many times what is expected counts as so late, once there are so many points: the line is one
# of least squares.
_ODD, _KNOWN_POINTS = 2.0, 4


class Expectation(NamedTuple):
    """What is expected of one request, in ms from its dispatch, part by part; and what that was told from. Like a
    `Cost` a tuple: several are made for a request, and a frozen dataclass takes three times as long to make."""

    ready_ms: float = 0.0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    rest_ms: float = 0.0
    # Of the queue's part, the wait for a place in a full batch.
    full_ms: float = 0.0
    # Prompt tokens ahead of it, and what one takes by what the server has measured, or is assumed.
    ahead_tokens: float = 0.0
    usual_ms_per_token: float = 0.0

    @property
    def total_ms(self) -> float:
        """Until the first token."""
        return self.ready_ms + self.queue_ms + self.prefill_ms + self.rest_ms


NOTHING_EXPECTED = Expectation()


class Point(NamedTuple):
    """One first token: prompt tokens computed for it, those ahead included, and the time since its dispatch."""

    at_s: float
    tokens: float
    took_ms: float


class Line:
    """What is learned of one model on one server, in ms."""

    def __init__(self) -> None:
        self.base_ms = self.per_token_ms = self.rest_ms = self.queue_ms = 0.0
        self._line = DecayedLine(_HALF_LIFE_S, _LEAST_POINTS)
        self._points: deque[Point] = deque(maxlen=_MOST_POINTS)
        # Of the latest, what lay outside the engine, and where nothing was ahead, what it had them wait.
        self._rests: deque[float] = deque(maxlen=_MOST_POINTS)
        self._queues: deque[float] = deque(maxlen=_MOST_POINTS)

    def add(self, point: Point, usual_ms_per_token: float) -> None:
        """A first token came."""
        took_ms, points = point.took_ms, self._points
        if len(points) >= _KNOWN_POINTS:
            took_ms = min(took_ms, _ODD * (self.base_ms + self.per_token_ms * point.tokens))
        self._line.add(point.tokens, took_ms, point.at_s)
        points.append(point)
        while len(points) > _LEAST_POINTS and points[0].at_s < point.at_s - _HALF_LIFE_S:
            points.popleft()
        self.per_token_ms = self._line.slope_toward(usual_ms_per_token)
        per_token_ms = self.per_token_ms
        self.base_ms = max(0.0, median([each.took_ms - per_token_ms * each.tokens for each in points]))

    def split(self, rest_ms: float, queue_ms: float | None) -> None:
        """What an engine said of one of them."""
        self._rests.append(rest_ms)
        self.rest_ms = max(0.0, median(self._rests))
        if queue_ms is not None:
            self._queues.append(queue_ms)
            self.queue_ms = max(0.0, median(self._queues))


class FirstTokens:
    """The lines of all servers and models. Belongs to one event loop."""

    def __init__(self) -> None:
        self._lines: dict[tuple[Key, str], Line] = {}

    def line(self, key: Key, model: str) -> Line | None:
        """What is learned of the model there; None before the first token."""
        return self._lines.get((key, model))

    def expect(
        self,
        key: Key,
        model: str,
        tokens: float,
        cost: Cost,
        account: Account,
        way_ms: float,
        now_s: float,
        step_tokens: int = 0,
    ) -> Expectation:
        """Of a request dispatched to `key` now, of which `tokens` are to be computed there at that cost, of
        `step_tokens` in a step at most (0: not known).

        Before anything is learned: what the cost says, and the way to the server's zone.
        """
        line = self._lines.get((key, model))
        usual_ms_per_token = max(0.0, cost.prefill_ms - account.load.itl_ms) / tokens
        if line is None:
            in_engine_ms, rest_ms, queue_ms = account.load.itl_ms, way_ms, 0.0
            per_token_ms = usual_ms_per_token
        else:
            rest_ms = min(line.rest_ms, line.base_ms)
            queue_ms = min(line.queue_ms, line.base_ms - rest_ms)
            per_token_ms = line.per_token_ms
            in_engine_ms = line.base_ms - rest_ms - queue_ms
        base_ms = in_engine_ms + rest_ms + queue_ms
        # It comes after those before it, and no sooner than alone.
        others_ms = account.others_prompt_tokens * per_token_ms - (now_s - account.reported_at_s) * 1e3
        ahead_ms = max(0.0, account.due_ms(now_s) - base_ms, others_ms)
        ahead_tokens = ahead_ms / per_token_ms if per_token_ms else 0.0
        # What of it does not fill a step is computed with the request's own, and no wait to the engine.
        joined_ms = ahead_tokens % step_tokens * per_token_ms if step_tokens else 0.0
        return Expectation(
            cost.ready_ms,
            cost.full_ms + queue_ms + ahead_ms - joined_ms,
            in_engine_ms + joined_ms + per_token_ms * tokens,
            rest_ms,
            cost.full_ms,
            ahead_tokens,
            usual_ms_per_token,
        )

    def came(
        self, key: Key, model: str, expected: Expectation, computed_tokens: float, waited_ms: float, now_s: float
    ) -> None:
        """Its first token came now, after `waited_ms`; of its prompt, `computed_tokens` were not cached.

        What waited for a model to be ready, or for a place, says nothing of what others will take.
        """
        if not expected.ready_ms and not expected.full_ms:
            point = Point(now_s, expected.ahead_tokens + max(1, computed_tokens), waited_ms)
            self._lines.setdefault((key, model), Line()).add(point, expected.usual_ms_per_token)

    def told(
        self, key: Key, model: str, expected: Expectation, waited_ms: float, timings: inference_pb2.Timings
    ) -> None:
        """It has finished, and the server told its times."""
        line = self._lines.get((key, model))
        if line is None or not timings.HasField("prefill"):
            return
        ready_ms, queue_ms, prefill_ms = (
            each.ToNanoseconds() / 1e6 for each in (timings.load, timings.queue, timings.prefill)
        )
        rest_ms = waited_ms - ready_ms - queue_ms - prefill_ms
        line.split(rest_ms, None if expected.ahead_tokens else queue_ms)

    def keep(self, keys: Collection[Key]) -> None:
        """Forget servers that are gone."""
        self._lines = {of: line for of, line in self._lines.items() if of[0] in keys}
