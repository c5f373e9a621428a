from collections.abc import Collection
from dataclasses import replace
from random import Random

from discovery.catalog import CatalogState
from discovery.endpoint import Endpoint, Load, Residency
from router.ejection import Breakers, EjectionRules
from router.fleet import Fleet
from router.ledger import Key, Ledger
from router.policy import Conditions, Policy
from router.scorers import Rates
from tests.fakes.clock import FakeClock
from tests.unit.router.builders import HOT, MODEL, endpoint, key, request, view

A1, A2 = endpoint("a-1"), endpoint("a-2")


class Seen:
    """A fleet, and the members that it told of."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.members: list[set[Key]] = []
        self.ledger = Ledger(FakeClock())
        self.fleet = Fleet(self.ledger, self._take)
        self.fleet.publish(view(endpoints))

    def _take(self, members: Collection[Key]) -> None:
        self.members.append(set(members))


def test_tells_of_members_that_come_and_go_and_of_nothing_else() -> None:
    seen = Seen(A1)
    seen.fleet.publish(view([A1, A2]))
    seen.fleet.publish(view([A1, A2], {"a-2": CatalogState.CRITICAL}))
    seen.fleet.publish(view([A2]))
    assert seen.members == [{key(A1)}, {key(A1), key(A2)}, {key(A2)}]


def test_a_view_that_was_only_confirmed_makes_no_new_snapshot() -> None:
    seen = Seen(A1)
    before = seen.fleet.snapshot
    seen.fleet.publish(view([A1], confirmed_at_s=5.0))
    assert seen.fleet.snapshot is before
    assert seen.fleet.view.zones["a"].confirmed_at_s == 5.0


def test_a_new_load_is_reported_and_an_old_one_that_comes_again_is_not() -> None:
    seen = Seen(A1)
    loaded = replace(A1, load=Load(running=3))
    seen.fleet.publish(view([loaded]))
    assert seen.ledger.accounts[key(A1)].others_streams == 3
    seen.ledger.report(key(A1), Load())
    seen.fleet.publish(view([loaded, A2]))
    assert seen.ledger.accounts[key(A1)].others_streams == 0


def test_a_load_that_the_catalog_tells_late_sends_nobody_to_another_zone() -> None:
    away = endpoint("b-1", "b")
    seen = Seen(A1, away)
    seen.ledger.report(key(A1), Load())  # over its link, a moment ago
    seen.fleet.publish(view([replace(A1, load=Load(running=1)), away]))
    conditions = Conditions(seen.ledger.accounts, Breakers(EjectionRules(), FakeClock(), Random(0)), {}, {}, 0.0)
    chosen = Policy("a", Rates()).choose(request(), seen.fleet.snapshot, (), conditions, Random(0))
    assert chosen is not None
    assert (chosen.candidate.holder.member.key, chosen.reason) == (key(A1), "nearest zone")


def test_a_restarted_server_starts_without_what_its_last_life_had() -> None:
    seen = Seen(replace(A1, load=Load(running=3)))
    seen.fleet.publish(view([replace(A1, epoch="e2")]))
    assert key(A1) not in seen.ledger.accounts
    assert seen.ledger.accounts["a-1", "e2"].streams == 0


def test_the_data_path_decides_about_the_doubtful() -> None:
    seen = Seen(A1)
    seen.fleet.publish(view([A1], {"a-1": CatalogState.MISSING}))
    assert seen.fleet.doubtful() == [key(A1)]
    seen.fleet.data_path({key(A1): False})
    assert not seen.fleet.snapshot.holders[MODEL].by_key
    seen.fleet.data_path({key(A1): True})
    assert key(A1) in seen.fleet.snapshot.holders[MODEL].by_key


def test_a_model_that_a_server_said_is_hot_is_so_until_the_catalog_speaks_of_its_models_again() -> None:
    fleet = Fleet(Ledger(FakeClock()), lambda members: None)
    staged = replace(HOT, residency=Residency.STAGED, time_to_ready_ms=5000.0)
    cold = endpoint("a-1", models=(staged,))
    fleet.publish(view([cold, endpoint("a-2", models=(staged,))]))

    def where() -> list[Residency]:
        return [holder.model.residency for holder in fleet.snapshot.holders[MODEL].by_key.values()]

    fleet.hot(key(cold), MODEL)
    assert where() == [Residency.HOT, Residency.STAGED]
    assert fleet.snapshot.holders[MODEL].by_key[key(cold)].model.time_to_ready_ms == 0.0
    other = endpoint("a-2", models=(replace(staged, time_to_ready_ms=1.0),))
    fleet.publish(view([replace(cold, load=Load(running=1)), other]))
    assert where() == [Residency.HOT, Residency.STAGED], "its load says nothing of its models"
    fleet.publish(view([replace(cold, models=(replace(staged, time_to_ready_ms=9.0),)), other]))
    assert where() == [Residency.STAGED, Residency.STAGED]
    fleet.hot(("nobody", "e"), MODEL)
    assert where() == [Residency.STAGED, Residency.STAGED]
