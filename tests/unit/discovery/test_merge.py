"""Merging fails static: the table in discovery/merge.py, row by row, and as properties."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.catalog import CatalogEntry, CatalogState, ZoneView
from discovery.consul_answer import Reported
from discovery.endpoint import Endpoint
from discovery.merge import fail, forget, merge

pytestmark = pytest.mark.unit

PASSING, CRITICAL, MISSING, LEAVING = (
    CatalogState.PASSING,
    CatalogState.CRITICAL,
    CatalogState.MISSING,
    CatalogState.LEAVING,
)
REPORTABLE = [state for state in CatalogState if state is not MISSING]


def endpoint(server: str, epoch: str = "1") -> Endpoint:
    return Endpoint(server, "h:1", "zone-a", epoch, "sim", ())


def view_of(*entries: tuple[str, CatalogState]) -> ZoneView:
    return ZoneView("zone-a", {name: CatalogEntry(endpoint(name), state) for name, state in entries}, 1.0)


def good(server: str, state: CatalogState = PASSING, epoch: str = "1") -> dict[str, Reported]:
    return {server: Reported(server, state, endpoint(server, epoch))}


def states(view: ZoneView) -> dict[str, CatalogState]:
    return {name: entry.state for name, entry in view.entries.items()}


@pytest.mark.parametrize("state", REPORTABLE)
def test_a_good_record_is_taken_with_its_state(state: CatalogState) -> None:
    view = merge(view_of(("a", PASSING)), good("a", state, epoch="2"), "", 5.0, 10)
    assert view.entries["a"] == CatalogEntry(endpoint("a", "2"), state)
    assert view.confirmed_at_s == 5.0


def test_a_bad_record_changes_the_state_only() -> None:
    reports = {"a": Reported("a", CRITICAL, None, "bad"), "b": Reported("b", PASSING, None, "bad")}
    view = merge(view_of(("a", PASSING)), reports, "", 5.0, 10)
    assert dict(view.entries) == {"a": CatalogEntry(endpoint("a"), CRITICAL)}


def test_absence_is_missing_and_after_leaving_it_is_the_end() -> None:
    view = merge(view_of(("a", PASSING), ("b", CRITICAL), ("c", LEAVING), ("d", MISSING)), {}, "", 5.0, 10)
    assert states(view) == {"a": MISSING, "b": MISSING, "d": MISSING}
    assert view.entries["a"].endpoint == endpoint("a")


def test_a_missing_one_that_comes_back_is_what_it_is() -> None:
    view = merge(view_of(("a", MISSING)), good("a", epoch="2"), "", 5.0, 10)
    assert view.entries["a"] == CatalogEntry(endpoint("a", "2"), PASSING)


def test_an_answer_that_is_doubted_adds_and_takes_nothing() -> None:
    before = view_of(("a", PASSING), ("b", LEAVING))
    view = merge(before, good("a", CRITICAL, "2") | good("c"), "no leader", 5.0, 10)
    assert states(view) == {"a": PASSING, "b": LEAVING, "c": PASSING}
    assert view.entries["a"].endpoint.epoch == "1"
    assert view.confirmed_at_s == 1.0
    assert view.error == "no leader"


def test_an_answer_that_can_be_believed_clears_the_error() -> None:
    assert merge(fail(view_of(("a", PASSING)), "timeout"), good("a"), "", 5.0, 10).error == ""


def test_the_oldest_missing_are_given_up_first() -> None:
    view = view_of(("a", PASSING), ("b", PASSING), ("c", PASSING))
    view = merge(view, good("a") | good("c"), "", 2.0, 2)
    view = merge(view, good("c"), "", 3.0, 2)
    assert states(view) == {"b": MISSING, "a": MISSING, "c": PASSING}
    view = merge(view, {}, "", 4.0, 2)
    assert states(view) == {"a": MISSING, "c": MISSING}


def test_forgetting_wants_a_missing_entry_of_that_epoch() -> None:
    view = view_of(("a", MISSING), ("b", CRITICAL))
    assert forget(view, [("a", "2")]) is view
    assert forget(view, [("b", "1")]) is view
    assert forget(view, [("c", "1")]) is view
    assert states(forget(view, [("a", "1")])) == {"b": CRITICAL}


names = st.sampled_from("abcdef")
views = st.dictionaries(names, st.sampled_from(CatalogState)).map(lambda found: view_of(*found.items()))
reports = st.dictionaries(names, st.tuples(st.sampled_from(REPORTABLE), st.booleans())).map(
    lambda found: {
        name: Reported(name, state, endpoint(name) if decodes else None) for name, (state, decodes) in found.items()
    }
)


@given(views, reports, st.sampled_from(["", "doubt"]))
def test_only_who_was_leaving_ever_goes(view: ZoneView, reports: dict[str, Reported], doubt: str) -> None:
    after = merge(view, reports, doubt, 5.0, 100)
    gone = view.entries.keys() - after.entries.keys()
    assert all(view.entries[name].state is LEAVING for name in gone)
    assert not (doubt and gone)


@given(views)
def test_an_error_changes_nothing_but_the_error(view: ZoneView) -> None:
    assert replace(fail(view, "500"), error="") == view
