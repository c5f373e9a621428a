"""Where a request should go: filter the holders of its model, cost each, pick the cheapest. Pure over a snapshot."""

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import NamedTuple

from discovery.endpoint import Residency
from router import filters, scorers
from router.ejection import Breakers
from router.ledger import NOTHING, UNTOLD, Account, Key, Typical
from router.rendezvous import liking
from router.request import Request
from router.room import Rooms
from router.scorers import Cost, Rates
from router.shortlist import homes, shortlist
from router.snapshot import NOBODY, Holder, Holders, Snapshot


class Candidate(NamedTuple):
    """A holder that may get the request, and what it would cost there."""

    holder: Holder
    cost: Cost


@dataclass(frozen=True, slots=True)
class Choices:
    """What a request can choose from: candidates cheapest first, and why the other holders are none."""

    candidates: tuple[Candidate, ...]
    excluded: Mapping[Key, str]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The candidate that was picked, and the term that decided."""

    candidate: Candidate
    reason: str
    candidates: int
    # What the best of the others costs; None without others, or where costs decide nothing.
    next_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is known at the moment of a pick, beside the snapshot. Read-only here."""

    accounts: Mapping[Key, Account]
    breakers: Breakers
    # Tokens of the request's prompt in the cache, by server and epoch, those with most first.
    held: Mapping[Key, int]
    # The way to each other zone in ms, as measured.
    ways_ms: Mapping[str, float]
    now_s: float
    # Who has room for one more; None where room does not matter.
    rooms: Rooms | None = None
    # Tokens of the request's session, by server and epoch.
    session: Mapping[Key, int] = field(default_factory=dict)
    # What endpoints have measured on average, for those that have not.
    typical: Typical = UNTOLD


@dataclass(frozen=True, slots=True)
class Preference:
    """Where a session goes among servers that cost the same: the same in every router, so that it moves as a whole."""

    session: int = 0
    # Its tokens by server, and the servers that are its homes in a large fleet.
    at: Mapping[Key, int] = field(default_factory=dict)
    homes: Collection[Key] = ()

    def rank(self, holder: Holder) -> tuple[int, bool, int]:
        """The higher the better: where it is, else at home, else as its hash likes."""
        member = holder.member
        return self.at.get(member.key, 0), member.key in self.homes, liking(self.session, member.endpoint.server)


NO_PREFERENCE = Preference()


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of choice, for a router in `zone`."""

    zone: str
    rates: Rates
    # Candidates whose cost is within this share of the cheapest, or this time, are as good: one at random, so that
    # routers that see the same do not all do the same.
    near_share: float = 0.05
    near_ms: float = 1.0

    @property
    def costs(self) -> "Policy":
        """Its own."""
        return self

    def choose(
        self, request: Request, snapshot: Snapshot, tried: Collection[Key], conditions: Conditions, rng: random.Random
    ) -> Chosen | None:
        """The holder to send the request to; None if none can take it."""
        holders = snapshot.holders.get(request.model, NOBODY)
        if request.hard and (home := _home(holders, tried, conditions)) is not None:
            # It waits for this one, if need be.
            chosen = self.pick(self.weigh(request, (home,), tried, conditions, panic=False), rng)
            return replace(chosen, reason="session's server") if chosen is not None else None
        at = homes(holders, request.session, self.zone)
        some = shortlist(holders, conditions.held, at, self.zone, rng)
        preference = Preference(request.session, conditions.session, frozenset(each.member.key for each in at))
        if len(some) < len(holders.by_key):
            choices = self.weigh(request, some, tried, conditions, panic=False)
            chosen = self.pick(self._spread(choices, conditions, rng), rng, preference)
            if chosen is not None:
                return chosen
            # By chance none of the shortlist can take it: somebody else may.
        choices = self.weigh(request, holders.by_key.values(), tried, conditions)
        return self.pick(self._spread(choices, conditions, rng), rng, preference)

    def _spread(self, choices: Choices, conditions: Conditions, rng: random.Random) -> Choices:
        """Without the home zone, for the part of the load that it does not keep while endpoints of it are out.

        A request whose session's cache is at home stays: elsewhere it would cost more than it relieves.
        """
        share = conditions.breakers.zone_share(self.zone)
        if share >= 1.0 or rng.random() < share:
            return choices
        if any(candidate.cost.cached_tokens for candidate in choices.candidates):
            return choices
        away = tuple(each for each in choices.candidates if each.holder.member.endpoint.zone != self.zone)
        return Choices(away, choices.excluded) if away else choices

    def weigh(
        self,
        request: Request,
        holders: Iterable[Holder],
        tried: Collection[Key],
        conditions: Conditions,
        *,
        panic: bool = True,
    ) -> Choices:
        """Filter and cost the holders of the request's model.

        Where one has room, full ones are candidates, too. When experience has ejected every holder that is left, its
        word counts no more than a guess, and with `panic` all of them are candidates again (Envoy's rule). Where only a
        part of a zone is left: `Breakers.doubts`.
        """
        fit: list[Holder] = []
        ejected: list[Holder] = []
        full: list[Holder] = []
        excluded: dict[Key, str] = {}
        breakers, accounts, rooms, now_s = conditions.breakers, conditions.accounts, conditions.rooms, conditions.now_s
        for holder in holders:
            key = holder.member.key
            if tried and (why := filters.tried(key, tried)):
                excluded[key] = why
            elif why := filters.ejected(key, breakers):
                excluded[key] = why
                ejected.append(holder)
            elif rooms is not None and (why := filters.full(holder.member, accounts, rooms, now_s)):
                excluded[key] = why
                full.append(holder)
            else:
                fit.append(holder)
        if panic and not fit and not full:
            for holder in ejected:
                if why := filters.full(holder.member, accounts, rooms, now_s):
                    excluded[holder.member.key] = why
                else:
                    fit.append(holder)
                    del excluded[holder.member.key]
        if full and rooms is not None and any(holder.model.residency is Residency.HOT for holder in fit):
            # Somebody has room, so that nothing waits in the router: a full one is a longer queue then, and no more.
            # Else all would go behind the queue of the last that has room, however long it is (docs/adr/0163).
            for holder in full:
                if not rooms.overloaded(holder.member.key, now_s):
                    del excluded[holder.member.key]
                    fit.append(holder)
        candidates = sorted(
            (Candidate(holder, self._cost(request, holder, conditions)) for holder in fit),
            key=lambda candidate: candidate.cost.total_ms,
        )
        return Choices(tuple(candidates), excluded)

    def pick(self, choices: Choices, rng: random.Random, preference: Preference = NO_PREFERENCE) -> Chosen | None:
        """The cheapest candidate; None if there is none. Among near ties the one its session prefers, or any."""
        candidates = choices.candidates
        if not candidates:
            return None
        best_ms = candidates[0].cost.total_ms
        limit_ms = best_ms + max(self.near_ms, best_ms * self.near_share)
        near = sum(candidate.cost.total_ms <= limit_ms for candidate in candidates)
        chosen = candidates[0]
        if near > 1 and preference.session:
            chosen = max(candidates[:near], key=lambda each: preference.rank(each.holder))
        elif near > 1:
            chosen = candidates[rng.randrange(near)]
        others = candidates[1:] if chosen is candidates[0] else candidates
        next_ms = others[0].cost.total_ms if others else None
        return Chosen(chosen, _reason(chosen, candidates, near, preference), len(candidates), next_ms)

    def settled(self, choices: Choices, model: str) -> Candidate | None:
        """The candidate to ready a model on: among near ties the same one for every router, so that it is one."""
        candidates = choices.candidates
        if not candidates:
            return None
        best_ms = candidates[0].cost.total_ms
        limit_ms = best_ms + max(self.near_ms, best_ms * self.near_share)
        near = [candidate for candidate in candidates if candidate.cost.total_ms <= limit_ms]
        return max(near, key=lambda each: blake2b(f"{model} {each.holder.member.key[0]}".encode()).digest())

    def _cost(self, request: Request, holder: Holder, conditions: Conditions) -> Cost:
        member = holder.member
        zone = member.endpoint.zone
        way_ms = 0.0 if zone == self.zone else conditions.ways_ms.get(zone, 0.0) + self.rates.leave_zone_ms
        return scorers.cost(
            request,
            holder,
            conditions.accounts.get(member.key, NOTHING),
            conditions.held.get(member.key, 0),
            way_ms,
            self.rates,
            conditions.now_s,
            conditions.breakers.share(member.key),
            conditions.typical,
        )


# What to call it when a term decides.
_DECIDED_BY = {
    "ready_ms": "model already warm",
    "queue_ms": "shortest queue",
    "prefill_ms": "fastest prefill",
    "decode_ms": "fewest streams",
    "zone_ms": "nearest zone",
    "ramp_ms": "longest back",
}


def _home(holders: Holders, tried: Collection[Key], conditions: Conditions) -> Holder | None:
    """The server that a hard session waits for: the one with most of it. None if that is gone, draining or failing."""
    session = conditions.session
    known = [key for key in session if key in holders.by_key and key not in tried]
    there = [key for key in known if not filters.ejected(key, conditions.breakers)]
    return holders.by_key[max(there, key=lambda key: session[key])] if there else None


def _reason(chosen: Candidate, candidates: tuple[Candidate, ...], near: int, preference: Preference) -> str:
    """The term in which the chosen one is farthest ahead of the next best."""
    if len(candidates) == 1:
        return "only candidate"
    if near == len(candidates):
        return "all alike"
    # The one it was really chosen over: the best that was no near tie.
    over = candidates[near]
    lead, term = max((getattr(over.cost, term) - getattr(chosen.cost, term), term) for term in _DECIDED_BY)
    if lead <= 0:
        return "all alike"
    if term == "prefill_ms" and chosen.cost.cached_tokens > over.cost.cached_tokens:
        return "session's cache" if chosen.holder.member.key in preference.at else "cached prefix"
    return _DECIDED_BY[term]
