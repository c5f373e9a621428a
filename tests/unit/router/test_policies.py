"""The policies that a router is compared with."""

import random
from collections import Counter

import pytest

from discovery.endpoint import Endpoint, ModelState, Residency
from router.config import RouterSettings
from router.ejection import Breakers, EjectionRules
from router.ledger import Account, Key
from router.policies import Baseline, RoutingPolicy, policy
from router.policy import Conditions, Policy
from router.scorers import Rates
from tests.fakes.clock import FakeClock
from tests.unit.router.builders import MODEL, endpoint, key, request, snapshot

A1, A2, A3, B1 = endpoint("a-1"), endpoint("a-2"), endpoint("a-3"), endpoint("b-1", "b")
COLD = endpoint("a-9", models=(ModelState(MODEL, Residency.ASLEEP, 4096),))


def picks(
    by: RoutingPolicy,
    *endpoints: Endpoint,
    times: int,
    tried: tuple[Endpoint, ...] = (),
    accounts: dict[Key, Account] | None = None,
) -> list[str]:
    """The servers of so many requests, one after the other."""
    clock = FakeClock()
    breakers = Breakers(EjectionRules(), clock, random.Random(1))
    # The first one has all of the prompt: neither of them is to care.
    conditions = Conditions(accounts or {}, breakers, {key(endpoints[0]): 99}, {}, clock())
    rng, seen = random.Random(1), snapshot(*endpoints)
    chosen = [by.choose(request(), seen, {key(each) for each in tried}, conditions, rng) for _ in range(times)]
    return [each.candidate.holder.member.endpoint.server for each in chosen if each is not None]


def named(name: str) -> RoutingPolicy:
    settings = RouterSettings.model_validate({"policy": name})
    return policy(settings.policy, "a", Rates(), settings.near_share)


def test_stokers_own_is_the_default() -> None:
    assert isinstance(policy(RouterSettings.model_validate({}).policy, "a", Rates(), 0.05), Policy)


def test_round_robin_takes_one_after_the_other_of_all_zones() -> None:
    assert picks(named("round-robin"), B1, A2, A1, times=6) == ["a-1", "a-2", "b-1"] * 2


def test_round_robin_leaves_out_who_was_tried() -> None:
    assert picks(named("round-robin"), A1, A2, A3, times=4, tried=(A2,)) == ["a-1", "a-3"] * 2


def test_least_outstanding_takes_the_one_with_fewest_of_our_own_requests() -> None:
    # What others have there it does not know.
    accounts = {key(A1): Account(own_streams=2), key(A2): Account(own_streams=1, others_streams=9)}
    assert picks(named("least-outstanding"), A1, A2, times=5, accounts=accounts) == ["a-2"] * 5


def test_least_outstanding_takes_any_among_equals() -> None:
    assert set(Counter(picks(named("least-outstanding"), A1, A2, A3, times=60))) == {"a-1", "a-2", "a-3"}


@pytest.mark.parametrize("name", ["round-robin", "least-outstanding"])
def test_where_the_model_is_hot_comes_first_and_a_cold_one_only_when_nothing_else_is_left(name: str) -> None:
    assert picks(named(name), COLD, A1, times=4) == ["a-1"] * 4
    assert picks(named(name), COLD, A1, times=2, tried=(A1,)) == ["a-9"] * 2
    assert picks(named(name), COLD, times=1, tried=(COLD,)) == []


def test_it_says_that_it_was_a_rule_and_what_it_would_cost() -> None:
    clock = FakeClock()
    conditions = Conditions({}, Breakers(EjectionRules(), clock, random.Random(1)), {}, {}, clock())
    by = named("round-robin")
    chosen = by.choose(request(), snapshot(A1, A2), (), conditions, random.Random(1))
    assert isinstance(by, Baseline)
    assert chosen is not None
    assert (chosen.reason, chosen.candidates) == ("round robin", 2)
    assert chosen.candidate.cost.prefill_ms > 0
