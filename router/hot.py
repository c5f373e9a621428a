"""Where a request should go among the servers whose model is hot, or which server is to ready the model. Pure."""

import random
from collections.abc import Collection
from dataclasses import replace

from discovery.endpoint import Residency
from router.ledger import NOTHING, Key
from router.policies import RoutingPolicy
from router.policy import Candidate, Chosen, Conditions
from router.request import Request
from router.scorers import first_token_ms
from router.snapshot import NOBODY, Holder, Snapshot


def choose_hot(
    policy: RoutingPolicy,
    request: Request,
    snapshot: Snapshot,
    tried: Collection[Key],
    failed: Collection[Key],
    conditions: Conditions,
    rng: random.Random,
) -> tuple[Chosen | None, Candidate | None]:
    """The server for the request, of those where its model is hot; and the one that is to ready the model, if one is.

    One is where the request would cost less and have its first token sooner, room and all: it waits for that one then.
    What a copy would spare the streams of the hot ones is no reason for it: a burst is over before it is ready.
    `failed`: could not ready the model a moment ago.
    """
    chosen = policy.choose(request, snapshot, tried, conditions, rng)
    if chosen is None or _hot(chosen.candidate.holder):
        return chosen, None
    holders = snapshot.holders.get(request.model, NOBODY).by_key
    cold = {key for key, holder in holders.items() if not _hot(holder)}
    hot = policy.choose(request, snapshot, cold.union(tried), conditions, rng)
    unable = cold.intersection(failed)
    # A further copy never takes the place of another model's only one, and a first copy only where it must.
    last = {key for key in cold if _takes_the_last(snapshot, holders[key], conditions)}
    if len(cold) < len(holders) or not cold <= last | unable:
        unable |= last
    choices = policy.costs.weigh(request, holders.values(), unable.union(tried), replace(conditions, rooms=None))
    nearest = policy.costs.settled(choices, request.model)
    if nearest is not None and _hot(nearest.holder):
        nearest = None
    if hot is not None and (nearest is None or _first_token_ms(hot.candidate) <= _first_token_ms(nearest)):
        return hot, None
    return None, nearest


def _first_token_ms(candidate: Candidate) -> float:
    return first_token_ms(candidate.cost, candidate.cost.zone_ms)


def _takes_the_last(snapshot: Snapshot, holder: Holder, conditions: Conditions) -> bool:
    """Whether room for the holder's model takes a model's only copy. Adapters go with their base; one that is hot
    nowhere else is no loss where another server has its base hot and it on disk: loading it takes milliseconds."""
    key = holder.member.key
    yielding = conditions.accounts.get(key, NOTHING).load.yielding if holder.needs_room else ()
    if not yielding:
        return False
    models = holder.member.endpoint.models
    adapters = [each.name for each in models if each.base in yielding and each.residency is Residency.HOT]
    return any(
        all(other == key or each.needs_room for other, each in snapshot.holders.get(model, NOBODY).by_key.items())
        for model in (*yielding, *adapters)
    )


def _hot(holder: Holder) -> bool:
    return holder.model.residency is Residency.HOT
