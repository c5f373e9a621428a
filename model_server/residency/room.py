"""Whether a model may become hot now, and which others make room for it. Pure.

A pinned model never yields. Of the others those yield that may, idle ones first, then the least recently used. A model
that just became hot may refuse for a while, lest two models push each other out all the time:

| the hot model | yields to one that is wanted |
| --- | --- |
| has been hot for `KEEP` times what the exchange costs | yes, so that exchanges take a sixth of the time at most |
| else, and it is idle and expects no request in the time that the exchange costs | yes |
| else, and the wanted one is asked for `MARGIN` times as often | yes |
| else | no |

Who is told no is told when it will be yes, if nobody asks for the hot one meanwhile. What an exchange costs: readying
the wanted one now and the yielding one again later.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_server.residency.demand import fades_in_s

KEEP = 5.0
MARGIN = 1.5
# When somebody is on his way in or out, it is known soon how that ends.
_MOVING_S = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What hot models may take: so many of them, and that share of the device's memory together."""

    max_hot: int = 1
    # What is left is for the processes themselves and for models that sleep (DESIGN.md section 8).
    memory: float = 0.9


@dataclass(frozen=True, slots=True)
class Seat:
    """A model as the rules see it. `ready_s`: how long it takes to be hot, or to be hot again once it has yielded.

    `moving`: on its way in or out. `users`: requests that run on it. Times are readings of one clock.
    """

    name: str
    share: float = 0.0
    pinned: bool = False
    moving: bool = False
    users: int = 0
    demand_per_s: float = 0.0
    # For how long that was watched: what was watched for long falls more slowly.
    watched_s: float = math.inf
    used_at_s: float = 0.0
    hot_since_s: float = 0.0
    ready_s: float = 0.0
    # How long requests run on it, on average.
    request_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Room:
    """What a wanted model gets: the models that make room for it, or why it cannot be hot now and when to ask again."""

    victims: tuple[str, ...] = ()
    refused: str = ""
    # None where coming back does not help.
    retry_after_s: float | None = None


def make_room(wanted: Seat, hot: Sequence[Seat], limits: Limits, now_s: float) -> Room:
    """Who makes room for `wanted`; `hot` are the models that are hot or on their way in or out of it."""
    if wanted.share > limits.memory + _ROUNDING:
        why = f"it takes {wanted.share:.0%} of the memory, and hot models may take {limits.memory:.0%}"
        return Room(refused=why)
    victims: list[str] = []
    left = list(hot)
    times = {seat.name: yields_at_s(seat, wanted, now_s) for seat in hot}
    ready = [seat for seat in hot if (at_s := times[seat.name]) is not None and at_s <= now_s]
    for victim in sorted(ready, key=lambda seat: (seat.users > 0, seat.used_at_s)):
        if _fits(wanted, left, limits):
            break
        left.remove(victim)
        victims.append(victim.name)
    if _fits(wanted, left, limits):
        return Room(tuple(victims))
    later = [at_s for seat in left if (at_s := times[seat.name]) is not None]
    names = ", ".join(seat.name for seat in left)
    return Room(
        refused=f"{names}: each is pinned, on its way, or has just become hot and is asked for as often",
        retry_after_s=min(later) - now_s if later else None,
    )


@dataclass(frozen=True, slots=True)
class Price:
    """What room costs in seconds, beside readying who wants it, and who makes it. None: there will be none."""

    s: float | None = 0.0
    victims: tuple[str, ...] = ()


def price(wanted: Seat, hot: Sequence[Seat], limits: Limits, now_s: float) -> Price:
    """What room for `wanted` costs.

    That is the wait until those yield that would and what runs on them has ended; and what the requests for them pay
    that come until they could be hot again: each waits so long.
    """
    room, later_s = make_room(wanted, hot, limits, now_s), 0.0
    if room.refused and room.retry_after_s is not None:
        later_s = room.retry_after_s
        room = make_room(
            wanted, [_later(seat, wanted, now_s, now_s + later_s) for seat in hot], limits, now_s + later_s
        )
    if room.refused:
        return Price(None)
    victims = [seat for seat in hot if seat.name in room.victims]
    ends_s = max((_all_ended_s(seat) for seat in victims), default=0.0)
    # To come back it needs room as well, of whoever is least busy then.
    again_s = min((_usually_ended_s(seat) for seat in hot), default=0.0)
    away = [(seat, ends_s + wanted.ready_s + seat.ready_s + again_s) for seat in victims]
    return Price(later_s + ends_s + sum(seat.demand_per_s * away_s * away_s for seat, away_s in away), room.victims)


def _later(seat: Seat, wanted: Seat, now_s: float, then_s: float) -> Seat:
    """As it will be then: settled, and free to yield if that is what it said."""
    at_s = yields_at_s(seat, wanted, now_s)
    yields = at_s is not None and at_s <= then_s
    return replace(seat, moving=False, hot_since_s=-math.inf if yields else seat.hot_since_s)


def _all_ended_s(seat: Seat) -> float:
    """Until the last of its requests has ended, if they end at random: their mean time x (1 + 1/2 + 1/3 ...)."""
    return seat.request_s * sum(1 / each for each in range(1, seat.users + 1))


def _usually_ended_s(seat: Seat) -> float:
    """The same with as many users as its demand brings (Little), and the series as the logarithm it nearly is."""
    return seat.request_s * math.log1p(seat.demand_per_s * seat.request_s)


def yields_at_s(seat: Seat, wanted: Seat, now_s: float) -> float | None:
    """When a hot model yields to the wanted one: now or earlier if it does, None if never."""
    if seat.pinned:
        return None
    if seat.moving:
        return now_s + _MOVING_S
    cost_s = seat.ready_s + wanted.ready_s
    kept_until_s = seat.hot_since_s + KEEP * cost_s
    if now_s >= kept_until_s:
        return now_s
    if wanted.demand_per_s > MARGIN * seat.demand_per_s:
        return now_s
    if seat.users or not cost_s:
        return kept_until_s
    return min(kept_until_s, now_s + fades_in_s(seat.demand_per_s, 1.0 / cost_s, seat.watched_s))


# Shares are decimal fractions: three of 0.3 fit into 0.9.
_ROUNDING = 1e-9


def _fits(wanted: Seat, hot: Sequence[Seat], limits: Limits) -> bool:
    share = wanted.share + sum(seat.share for seat in hot)
    return len(hot) < limits.max_hot and share <= limits.memory + _ROUNDING
