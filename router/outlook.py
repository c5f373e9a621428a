"""What a request that wants a server may expect, by what the router knows now."""

from collections.abc import Collection
from dataclasses import dataclass

from discovery.endpoint import Residency
from router.fleet import Fleet
from router.learned import Learned
from router.ledger import NOTHING, Key
from router.readying import Readying
from router.request import Request
from router.room import Rooms
from router.snapshot import NOBODY
from router.verdict import Prospect, too_long
from stoker.v1.inference_pb2 import Progress
from stoker_common.clock import Clock
from stoker_common.refusal import Refusal

# Some requests are quicker than the mean: only what is far from making it is given up unserved.
_HOPELESS = 0.8


@dataclass(frozen=True, slots=True)
class Ask:
    """One request that wants a server. `tried` is its caller's set, and may change while nobody waits with it."""

    request: Request
    priority: int = 0
    deadline_s: float | None = None
    tried: Collection[Key] = ()
    # Whether it waits while there is no server for it at all.
    hold: bool = True


class Outlook:
    """Reads the snapshot, what was learned, and what is being readied. Changes nothing."""

    def __init__(self, fleet: Fleet, learned: Learned, readying: Readying, rooms: Rooms, clock: Clock) -> None:
        self._fleet = fleet
        self._learned = learned
        self._readying = readying
        self._rooms = rooms
        self._clock = clock

    def progress(self, ask: Ask) -> tuple[Progress | None, Refusal | None]:
        """How far its model is, if it is being readied; and the refusal where that comes too late or to nothing."""
        model = ask.request.model
        progress = self._readying.progress(model)
        holders = self._fleet.snapshot.holders.get(model, NOBODY).by_key
        if any(holder.model.residency is Residency.HOT for holder in holders.values()):
            return progress, None  # it may get room there before
        if progress is None:
            refusal = self._readying.hopeless(model, [key for key in holders if key not in ask.tried], ask.deadline_s)
        else:
            refusal = too_long(progress, None if ask.deadline_s is None else ask.deadline_s - self._clock(), model)
        return progress, refusal

    def again_s(self, ask: Ask, held_until_s: float | None) -> float | None:
        """When to look again though nobody said so."""
        holders = self._fleet.snapshot.holders.get(ask.request.model, NOBODY).by_key
        times = [ask.deadline_s, held_until_s, self._rooms.changes_at_s(holders)]
        times.append(self._readying.changes_at_s(ask.request.model))
        breakers, now_s = self._learned.breakers, self._clock()
        times += [now_s + ejected_s for key in holders if (ejected_s := breakers.ejected_for_s(key))]
        return min((at_s for at_s in times if at_s is not None), default=None)

    def prospect(self, ask: Ask, ahead: int, queued: int) -> Prospect:
        """What it may expect that waits behind `ahead` of `queued`."""
        model, services, now_s = ask.request.model, self._learned.services, self._clock()
        accounts = self._learned.ledger.accounts
        holders = self._fleet.snapshot.holders.get(model, NOBODY).by_key
        # By Little's law: what this router has running, each for the mean time, ends at this rate and lets the next in.
        running = sum(accounts.get(key, NOTHING).own_streams for key in holders)
        request_s = services.request_s(model)
        return Prospect(
            ahead=ahead,
            queued=queued,
            turn_s=request_s / running if running and request_s is not None and self.able(ask) else None,
            service_s=services.expected_s(model, ask.request.expected_output_tokens),
            remaining_s=None if ask.deadline_s is None else ask.deadline_s - now_s,
        )

    def too_late(self, ask: Ask) -> bool:
        """Whether the request, whose turn it is now, would cost a GPU something and not finish in time."""
        if ask.deadline_s is None:
            return False
        service_s = self._learned.services.expected_s(ask.request.model, ask.request.expected_output_tokens) or 0.0
        return self._clock() + service_s * _HOPELESS > ask.deadline_s

    def able(self, ask: Ask) -> bool:
        """Whether there is a server for the request, with or without room."""
        holders = self._fleet.snapshot.holders.get(ask.request.model, NOBODY).by_key
        return any(key not in ask.tried for key in holders)
