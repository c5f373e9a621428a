"""Who competes for a server's memory, and what each costs to bring back: what `room` decides over, as it is now."""

from collections.abc import Mapping
from dataclasses import replace

from discovery.endpoint import Residency
from model_server.residency.held import Held
from model_server.residency.ready_times import ReadyTimes
from model_server.residency.room import Limits, Price, Seat, make_room, price
from stoker_common.clock import Clock
from stoker_common.refusal import exhausted

SHORTEST_RETRY_S = 0.1


class Seats:
    """A server's. Adapters compete with those of their base alone."""

    def __init__(self, held: Mapping[str, Held], limits: Limits, clock: Clock) -> None:
        self._held = held
        self._limits = limits
        self._clock = clock
        self._times = ReadyTimes()
        # Apart: what was never measured is taken to be like the others of its kind.
        self._adapter_times = ReadyTimes()

    def observe(self, held: Held, was: Residency, took_s: float) -> None:
        """A model that `was` there got hot."""
        (self._times if held.base is None else self._adapter_times).observe(held.name, was, took_s)

    def price(self) -> Price:
        """What room for a model that is not hot would cost now, for the largest of them. Nothing where all are hot."""
        cold = [(self.seat(each), each) for each in self._held.values() if each.base is None and not each.awake]
        if not cold:
            return Price()
        wanted, held = max(cold, key=lambda each: (each[0].share, each[0].ready_s))
        # As of one that nobody has asked for yet: who asks now is the router's to know.
        return price(replace(wanted, demand_per_s=0.0), self.awake(held), self._limits, self._clock())

    def first(self, wanted: Held, hot: list[Held]) -> bool:
        """Whether it may be hot as well, before anything was asked for."""
        taken = [replace(self.seat(each), pinned=True) for each in hot]
        return not make_room(self.seat(wanted), taken, self._limits, self._clock()).refused

    def make_room(self, wanted: Held) -> list[Held]:
        """Who makes room for it. Raises Refusal if nobody does."""
        hot, limits = self.awake(wanted), self._limits
        if wanted.base is not None and wanted.base.info is not None:
            # What an engine that takes none says of one more is clearer than what could be said here.
            limits = Limits(max_hot=max(1, wanted.base.info.max_adapters))
        elif wanted.base is not None:
            limits = Limits(max_hot=len(wanted.base.adapters))
        room = make_room(self.seat(wanted), hot, limits, self._clock())
        if room.refused:
            retry_s = None if room.retry_after_s is None else max(SHORTEST_RETRY_S, room.retry_after_s)
            text = f"no room for the model {wanted.name!r} on this server now: {room.refused}"
            raise exhausted(text, retry_after_s=retry_s, reason="NO_ROOM")
        return [self._held[name] for name in room.victims]

    def awake(self, but: Held) -> list[Seat]:
        """Who competes with it for room."""
        return [
            self.seat(each) for each in self._held.values() if each.awake and each is not but and each.base is but.base
        ]

    def seat(self, held: Held) -> Seat:
        """The model as the rules see it now."""
        now_s = self._clock()
        back = held.residency
        if back is Residency.HOT:
            back = Residency.ASLEEP if held.sleeps else Residency.STAGED
        return Seat(
            held.name,
            held.spec.share,
            pinned=held.pinned,
            moving=held.moving_to is not None,
            users=len(held.running),
            demand_per_s=held.demand.per_s(now_s),
            watched_s=held.demand.watched_s(now_s),
            used_at_s=held.used_at_s,
            hot_since_s=held.hot_since_s,
            ready_s=self.expected_s(held, back) or 0.0,
            request_s=held.request_s,
        )

    def expected_s(self, held: Held, where: Residency) -> float | None:
        """How long it takes to be hot from there, an adapter with what its base takes; None where nobody knows."""
        base = held.base
        if base is None:
            return self._times.expected_s(held.name, where)
        own_s = self._adapter_times.expected_s(held.name, where)
        if base.hot:
            return own_s
        base_s = self._times.expected_s(base.name, base.residency)
        return None if base_s is None else base_s + (own_s or 0.0)
