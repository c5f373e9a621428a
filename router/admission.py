"""Lets requests through while a server has room, and makes the others wait in order, or refuses them at once.

    admit ──► room, nobody waits ────────────────────────────────────────────► to the server that was picked
          └─► no room ──► it would be too late, or too many wait ──────────► RESOURCE_EXHAUSTED, at once
                     └──► waits: priority, deadline, arrival ──► its turn ──► to the server that is picked then
                                                          ├───► deadline ──► DEADLINE_EXCEEDED
                                                          ├───► no server could take it for `hold_s` ──► UNAVAILABLE
                                                          └───► its model is nowhere hot and cannot be in time

What waits is woken by what makes room: a request that ends, a load report, a new snapshot. Whoever has its turn picks
and books without an await in between, then wakes the next. Broken streams that go on elsewhere do not come through
here: they are never refused, and their bookings take the room that others wait for.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from router.admission_metrics import AdmissionMetrics
from router.fleet import Fleet
from router.learned import Learned
from router.outlook import Ask, Outlook
from router.policy import Chosen
from router.readying import Readying
from router.room import Rooms
from router.verdict import may_wait
from router.waiting import Place, Waiting
from stoker.v1.inference_pb2 import Progress
from stoker_common.clock import Clock
from stoker_common.refusal import Refusal, deadline_exceeded, exhausted

News = Progress | Chosen


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """How many wait for one model, and for how long while no server can take it."""

    queue_length: int = 256
    # A supervised server is back within seconds, another zone takes over within two.
    hold_s: float = 5.0


class Turn:
    """Tells one that waits to look again."""

    __slots__ = ("evicted", "given", "news", "picky")

    def __init__(self, *, picky: bool) -> None:
        self.news = asyncio.Event()
        # It has tried some servers, or waits for one: room elsewhere is none for it.
        self.picky = picky
        # Those before it could not use the room there is.
        self.given = False
        self.evicted: Refusal | None = None


class Admission:
    """The queues of all models. Belongs to one event loop."""

    def __init__(
        self,
        rules: AdmissionRules,
        rooms: Rooms,
        fleet: Fleet,
        learned: Learned,
        readying: Readying,
        metrics: AdmissionMetrics,
        clock: Clock,
    ) -> None:
        self.rooms = rooms
        self._rules = rules
        self._outlook = Outlook(fleet, learned, readying, rooms, clock)
        self._metrics = metrics
        self._clock = clock
        self._queues: dict[str, Waiting[Turn]] = {}
        metrics.watch(self.queues)
        learned.ledger.listen(self.room)
        fleet.listen(self.changed)
        readying.listen(self.told)

    async def admit(self, ask: Ask, pick: Callable[[], Chosen | None]) -> Chosen | None:
        """What `pick` chooses when it is the request's turn; book it before the next await.

        None if no server could take the request for as long as it may be held. Raises Refusal.
        """
        chosen = self.at_once(ask, pick)
        if chosen is None:
            async with aclosing(self.wait(ask, pick)) as news:
                async for each in news:
                    if isinstance(each, Chosen):
                        chosen = each
        return chosen

    def at_once(self, ask: Ask, pick: Callable[[], Chosen | None]) -> Chosen | None:
        """What `pick` chooses, if nobody waits before it. Otherwise `wait`."""
        return pick() if ask.request.model not in self._queues else None

    async def wait(self, ask: Ask, pick: Callable[[], Chosen | None]) -> AsyncGenerator[News, None]:
        """Last, what `pick` chooses when it is the request's turn; let this end and book it before the next await.
        Before it, while a model is readied for the request: how far that is.

        Ends without a choice if no server could take the request for as long as it may be held. Raises Refusal.
        """
        async with aclosing(self._wait(ask, pick)) as news:
            async for each in news:
                yield each
                if isinstance(each, Chosen):
                    return
        self._metrics.refusals.labels(ask.request.model, "NO_ENDPOINT").inc()

    def room(self) -> None:
        """Some server may have more room: whoever is first looks."""
        for queue in self._queues.values():
            if queue.first is not None:
                queue.first.who.news.set()

    def told(self, model: str) -> None:
        """There is news of a model that is being readied: all who wait for it look."""
        for place in self._queues.get(model, ()):
            place.who.news.set()

    def changed(self) -> None:
        """Servers came or went: all look whether there is one for them at all."""
        for queue in self._queues.values():
            for place in queue:
                place.who.news.set()

    def queues(self) -> dict[str, tuple[int, float]]:
        """For each model for which requests wait: how many, and for how long the oldest has. Also for other threads."""
        now_s = self._clock()
        return {
            model: (len(queue), max(0.0, now_s - (queue.oldest_since_s() or now_s)))
            for model, queue in list(self._queues.items())
        }

    async def _wait(self, ask: Ask, pick: Callable[[], Chosen | None]) -> AsyncGenerator[News, None]:
        if not self._outlook.able(ask) and not (ask.hold and self._rules.hold_s):
            return
        queue = self._queues.get(ask.request.model) or Waiting[Turn]()
        self._refuse_or_evict(ask, queue)
        with self._place(ask, queue) as place:
            async with aclosing(self._turns(ask, pick, queue, place)) as news:
                async for each in news:
                    if isinstance(each, Chosen) and self._outlook.too_late(ask):
                        late = "it waited for a server until too little time was left to be served before its deadline"
                        raise self._refused(ask, deadline_exceeded(late, reason="WAITED_TOO_LONG"))
                    yield each

    async def _turns(
        self, ask: Ask, pick: Callable[[], Chosen | None], queue: Waiting[Turn], place: Place[Turn]
    ) -> AsyncGenerator[News, None]:
        turn, held_until_s = place.who, None
        told: Progress | None = None
        while True:
            if turn.evicted is not None:
                raise self._refused(ask, turn.evicted)
            now_s = self._clock()
            if ask.deadline_s is not None and now_s >= ask.deadline_s:
                raise self._refused(ask, deadline_exceeded("the deadline passed while it waited for a server"))
            turn.news.clear()
            if turn.given or queue.first is place:
                turn.given = False
                chosen = pick()
                if chosen is not None:
                    yield chosen
                    return
                self._pass_on(ask, queue, place)
            progress, refusal = self._outlook.progress(ask)
            if refusal is not None:
                raise self._refused(ask, refusal)
            if progress is not None and progress is not told:
                told = progress
                yield progress
                continue
            if self._outlook.able(ask):
                held_until_s = None
            else:
                held_until_s = now_s + self._rules.hold_s if held_until_s is None else held_until_s
                if not ask.hold or now_s >= held_until_s:
                    return
            await self._news(turn, self._outlook.again_s(ask, held_until_s))

    def _pass_on(self, ask: Ask, queue: Waiting[Turn], place: Place[Turn]) -> None:
        """The room there is, if any, is on servers that this one has tried: the next may use it."""
        after = queue.after(place) if place.who.picky else None
        if after is not None:
            after.who.given = True
            after.who.news.set()

    async def _news(self, turn: Turn, until_s: float | None) -> None:
        try:
            async with asyncio.timeout(None if until_s is None else max(0.0, until_s - self._clock())):
                await turn.news.wait()
        except TimeoutError:
            return

    @contextmanager
    def _place(self, ask: Ask, queue: Waiting[Turn]) -> Iterator[Place[Turn]]:
        """A place in the queue, for as long as the block runs."""
        model, began_s = ask.request.model, self._clock()
        self._queues[model] = queue
        place = queue.add(ask.priority, ask.deadline_s, began_s, Turn(picky=bool(ask.tried) or ask.request.hard))
        if queue.first is not None and queue.first.who.picky:
            queue.first.who.news.set()  # what it cannot use, the newcomer may
        try:
            yield place
        finally:
            queue.remove(place)
            if queue.first is not None:
                queue.first.who.news.set()
            elif self._queues.get(model) is queue:
                del self._queues[model]
            self._metrics.waited.labels(model).observe(self._clock() - began_s)

    def _refuse_or_evict(self, ask: Ask, queue: Waiting[Turn]) -> None:
        """Raises Refusal if the request cannot wait. In a full queue, one of less priority makes way."""
        limit, last = self._rules.queue_length, queue.last
        prospect = self._outlook.prospect(ask, queue.ahead_of(ask.priority, ask.deadline_s), len(queue))
        refusal = may_wait(prospect, limit, ask.request.model)
        if refusal is None:
            return
        if refusal.reason == "QUEUE_FULL" and last is not None and ask.priority < last.priority:
            if last.who.evicted is None:
                last.who.evicted = exhausted(
                    "the queue is full, and a request of higher priority came",
                    retry_after_s=refusal.retry_after_s,
                    reason="QUEUE_FULL",
                )
            last.who.news.set()
            queue.remove(last)
            return
        raise self._refused(ask, refusal)

    def _refused(self, ask: Ask, refusal: Refusal) -> Refusal:
        self._metrics.refusals.labels(ask.request.model, refusal.reason).inc()
        return refusal
