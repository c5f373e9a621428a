import pytest

from discovery.catalog import CatalogState, CatalogView
from router.snapshot import NOBODY, build
from tests.unit.router.builders import MODEL, endpoint, key, snapshot, view

A1, A2 = endpoint("a-1"), endpoint("a-2")


def test_nothing_is_known_before_a_zone_was_read() -> None:
    assert not build(CatalogView(), frozenset()).known
    assert not build(view([A1], confirmed_at_s=None), frozenset()).known
    assert build(view([A1]), frozenset()).known


def test_holders_are_those_that_can_serve() -> None:
    found = snapshot(A1, A2, endpoint("b-1", "b"), states={"a-2": CatalogState.MAINTENANCE}).holders[MODEL]
    assert set(found.by_key) == {key(A1), ("b-1", "b-1-e1")}
    assert {zone: len(there) for zone, there in found.by_zone.items()} == {"a": 1, "b": 1}


@pytest.mark.parametrize("state", [CatalogState.CRITICAL, CatalogState.MISSING])
def test_doubtful_endpoints_go_only_when_the_data_path_is_dead_too(state: CatalogState) -> None:
    states = {"a-1": state}
    assert key(A1) in snapshot(A1, states=states).holders[MODEL].by_key
    gone = snapshot(A1, states=states, dead=frozenset({key(A1)}))
    assert gone.holders[MODEL].by_key == {}
    assert gone.members[key(A1)].absent == f"{state.value} and not answering"


def test_a_passing_endpoint_stays_whatever_one_check_of_its_data_path_said() -> None:
    assert key(A1) in snapshot(A1, dead=frozenset({key(A1)})).holders[MODEL].by_key


def test_a_model_that_nobody_can_serve_now_is_still_known() -> None:
    found = snapshot(A1, states={"a-1": CatalogState.LEAVING})
    assert found.models == {MODEL}
    assert found.holders[MODEL] == NOBODY
