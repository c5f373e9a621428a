"""The policies a router can be told to choose by: Stoker's own, and two that know nothing of caches, for comparison.

All of them filter alike and know the same costs, so that admission, readying, explaining and what is predicted of the
first token stay the same: they differ in who of the candidates gets the request.
"""

import itertools
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from discovery.endpoint import Residency
from router.config import PolicyName
from router.ledger import NOTHING, Account, Key
from router.policy import Candidate, Chosen, Conditions, Policy
from router.request import Request
from router.scorers import Rates
from router.snapshot import NOBODY, Snapshot


class RoutingPolicy(Protocol):
    """Chooses a server for each request. Belongs to one event loop; `choose` may count its calls, all else is pure."""

    @property
    def costs(self) -> Policy:
        """Who may be chosen and what it costs there: the same whoever chooses."""

    def choose(
        self, request: Request, snapshot: Snapshot, tried: Collection[Key], conditions: Conditions, rng: random.Random
    ) -> Chosen | None:
        """The holder to send the request to; None if none can take it."""


# Which of the candidates, in the order of their servers' names, gets a router's request number `turn`. Pure.
Rule = Callable[[Sequence[Candidate], Mapping[Key, Account], int, random.Random], Candidate]


def round_robin(
    candidates: Sequence[Candidate], accounts: Mapping[Key, Account], turn: int, rng: random.Random
) -> Candidate:
    """One after the other."""
    return candidates[turn % len(candidates)]


def least_outstanding(
    candidates: Sequence[Candidate], accounts: Mapping[Key, Account], turn: int, rng: random.Random
) -> Candidate:
    """The one with the fewest requests of this router's in flight; at random among equals."""
    streams = [accounts.get(each.holder.member.key, NOTHING).own_streams for each in candidates]
    least = min(streams)
    return rng.choice([each for each, count in zip(candidates, streams, strict=True) if count == least])


@dataclass(frozen=True, slots=True)
class Baseline:
    """A policy by one rule, among the servers where the model is hot, if there are any. Blind to zones and sessions."""

    costs: Policy
    name: str
    rule: Rule
    turns: Iterator[int] = field(default_factory=itertools.count)

    def choose(
        self, request: Request, snapshot: Snapshot, tried: Collection[Key], conditions: Conditions, rng: random.Random
    ) -> Chosen | None:
        """See RoutingPolicy."""
        holders = snapshot.holders.get(request.model, NOBODY).by_key.values()
        fit = self.costs.weigh(request, holders, tried, conditions).candidates
        hot = [each for each in fit if each.holder.model.residency is Residency.HOT] or fit
        if not hot:
            return None
        candidates = sorted(hot, key=lambda each: each.holder.member.key)
        return Chosen(self.rule(candidates, conditions.accounts, next(self.turns), rng), self.name, len(candidates))


def policy(name: PolicyName, zone: str, rates: Rates, near_share: float) -> RoutingPolicy:
    """The policy of that name, for a router in `zone`."""
    own = Policy(zone, rates, near_share)
    match name:
        case "stoker":
            return own
        case "round-robin":
            return Baseline(own, "round robin", round_robin)
        case "least-outstanding":
            return Baseline(own, "least outstanding", least_outstanding)
