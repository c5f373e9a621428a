"""Hot servers before cold ones, and which server is to ready a model."""

import random
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest

from discovery.endpoint import Endpoint, Load, ModelState, Residency
from router.ejection import Breakers, EjectionRules
from router.hot import choose_hot
from router.ledger import Account
from router.policy import Conditions, Policy
from router.scorers import Rates
from tests.fakes.clock import FakeClock
from tests.unit.router.builders import HOT, MODEL, endpoint, key, request, snapshot

ASLEEP = replace(HOT, residency=Residency.ASLEEP, time_to_ready_ms=500.0)
OTHER, OTHER_ASLEEP = (ModelState("other", each, 4096) for each in (Residency.HOT, Residency.ASLEEP))
# Of our model a hot copy, and a server that could wake another in place of the other model.
BUSY = endpoint("a-1", models=(HOT, OTHER_ASLEEP))
COLD = endpoint("a-2", models=(ASLEEP, OTHER))
POLICY = Policy("a", Rates(prefill_tokens_per_second=1000, itl_ms=10))


def chosen(
    *endpoints: Endpoint,
    failed: Collection[Endpoint] = (),
    yielding: tuple[str, ...] = (),
    model: str = MODEL,
    **busy: Any,
) -> tuple[str, str]:
    """Where a request goes and who readies the model, empty for nobody; `busy` is what is on the first server."""
    clock = FakeClock()
    accounts = {key(endpoints[0]): Account(**busy), key(COLD): Account(load=Load(yielding=yielding))}
    conditions = Conditions(accounts, Breakers(EjectionRules(), clock, random.Random(1)), {}, {}, clock())
    unable = {key(each) for each in failed}
    asked = replace(request(), model=model)
    hot, nearest = choose_hot(POLICY, asked, snapshot(*endpoints), (), unable, conditions, random.Random(1))
    return (
        hot.candidate.holder.member.endpoint.server if hot else "",
        nearest.holder.member.endpoint.server if nearest else "",
    )


def test_the_hot_one_where_it_is_cheaper() -> None:
    assert chosen(BUSY, COLD) == ("a-1", "")


def test_it_waits_for_the_cold_one_where_its_first_token_comes_sooner_so() -> None:
    assert chosen(BUSY, COLD, own_prompt_tokens=5000) == ("", "a-2")


def test_that_others_would_profit_is_no_reason_to_wait_nor_for_a_copy() -> None:
    assert chosen(BUSY, COLD, own_streams=7, own_prompt_tokens=200) == ("a-1", "")


def test_a_model_that_is_nowhere_hot_is_readied() -> None:
    assert chosen(COLD) == ("", "a-2")


def test_who_failed_is_not_asked_again_and_the_hot_one_is_taken() -> None:
    assert chosen(BUSY, COLD, failed=[COLD], own_prompt_tokens=5000) == ("a-1", "")
    assert chosen(COLD, failed=[COLD]) == ("", "")


@pytest.mark.parametrize(("elsewhere", "readies"), [(OTHER_ASLEEP, ""), (OTHER, "a-2")])
def test_a_further_copy_never_takes_the_place_of_anothers_last(elsewhere: ModelState, readies: str) -> None:
    third = endpoint("a-3", models=(elsewhere,))
    found = chosen(BUSY, COLD, third, yielding=("other",), own_prompt_tokens=5000)
    assert found == ("" if readies else "a-1", readies)


def test_a_first_copy_takes_it_only_where_it_must() -> None:
    assert chosen(COLD, yielding=("other",)) == ("", "a-2")
    free = endpoint("a-3", models=(replace(ASLEEP, time_to_ready_ms=900.0),))
    assert chosen(COLD, free, yielding=("other",)) == ("", "a-3")


TUNED, TUNED_STAGED = (
    ModelState("tuned", each, 4096, base="other", time_to_ready_ms=30.0) for each in (Residency.HOT, Residency.STAGED)
)


@pytest.mark.parametrize(
    ("elsewhere", "readies"),
    [
        ((OTHER,), ""),  # the adapter is nowhere else
        ((OTHER, TUNED), "a-2"),
        ((OTHER, TUNED_STAGED), "a-2"),  # loaded in no time, where its base is
        ((OTHER_ASLEEP, TUNED_STAGED), ""),
    ],
)
def test_a_bases_adapters_go_with_it(elsewhere: tuple[ModelState, ...], readies: str) -> None:
    cold = replace(COLD, models=(ASLEEP, OTHER, TUNED))
    third = endpoint("a-3", models=elsewhere)
    found = chosen(BUSY, cold, third, yielding=("other",), own_prompt_tokens=5000)
    assert found == ("" if readies else "a-1", readies)


def test_an_adapter_whose_base_is_hot_takes_nobodys_place() -> None:
    """What would make room there for a model makes none for it."""
    busy = replace(BUSY, models=(HOT, replace(HOT, name="tuned", base="m")))
    base_only = replace(COLD, models=(HOT, OTHER, replace(ASLEEP, name="tuned", base="m", time_to_ready_ms=30.0)))
    found = chosen(busy, base_only, yielding=("other",), model="tuned", own_prompt_tokens=5000)
    assert found == ("", "a-2")
