"""Reading health answers: checks to states, hostile rows, and no exception but CatalogError."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.agent_api import Answer
from discovery.catalog import CatalogState
from discovery.codec import encode
from discovery.consul_answer import disbelief, read_answer
from discovery.endpoint import Endpoint
from discovery.errors import CatalogError

pytestmark = pytest.mark.unit

RECORD = encode(Endpoint("a", "h:1", "zone-a", "1", "sim", ()))


def row(*checks: tuple[str, str], **meta: str) -> dict[str, Any]:
    return {
        "Node": {"Address": "10.1.1.1"},
        "Service": {
            "ID": "a",
            "Address": "h",
            "Port": 1,
            "Meta": {**RECORD.meta, **meta},
            "ModifyIndex": 7,
        },
        "Checks": [{"CheckID": check_id, "Status": status} for check_id, status in checks],
    }


def read(*rows: object) -> CatalogState:
    return read_answer(Answer(1, list(rows), True, 0), "zone-a")["a"].state


@pytest.mark.parametrize(
    ("checks", "state"),
    [
        ([], CatalogState.PASSING),
        ([("serfHealth", "passing"), ("service:a", "passing")], CatalogState.PASSING),
        ([("serfHealth", "passing"), ("service:a", "warning")], CatalogState.PASSING),
        ([("serfHealth", "passing"), ("service:a", "critical")], CatalogState.CRITICAL),
        ([("serfHealth", "critical"), ("service:a", "passing")], CatalogState.CRITICAL),
        ([("_service_maintenance:a", "critical"), ("service:a", "passing")], CatalogState.MAINTENANCE),
        ([("service:a", "critical"), ("_node_maintenance", "critical")], CatalogState.MAINTENANCE),
    ],
)
def test_checks_make_the_state(checks: list[tuple[str, str]], state: CatalogState) -> None:
    assert read(row(*checks)) is state


def test_leaving_beats_every_check_even_in_a_record_that_cannot_be_read() -> None:
    checks = [("service:a", "critical"), ("_service_maintenance:a", "critical")]
    assert read(row(*checks, state="leaving")) is CatalogState.LEAVING
    assert read(row(*checks, state="leaving", format="99")) is CatalogState.LEAVING


def test_a_server_that_moved_is_where_it_lives() -> None:
    dead, live = row(("serfHealth", "critical"), epoch="old"), row(epoch="new")
    dead["Service"]["ModifyIndex"] = 9
    for rows in ([dead, live], [live, dead]):
        report = read_answer(Answer(1, rows, True, 0), "zone-a")["a"]
        assert report.state is CatalogState.PASSING
        assert report.endpoint is not None and report.endpoint.epoch == "new"


def test_a_service_without_address_is_at_its_node() -> None:
    found = row()
    found["Service"]["Address"] = ""
    report = read_answer(Answer(1, [found], True, 0), "zone-a")["a"]
    assert report.endpoint is not None and report.endpoint.address == "10.1.1.1:1"


@pytest.mark.parametrize(
    ("answer", "doubted"),
    [
        (Answer(1, [], True, 0), False),
        (Answer(1, [], False, 0), True),
        (Answer(1, [], True, 9_999), False),
        (Answer(1, [], True, 60_000), True),
    ],
)
def test_without_a_leader_an_answer_is_doubted(answer: Answer, doubted: bool) -> None:
    assert bool(disbelief(answer)) is doubted


def test_an_unchanged_record_is_not_decoded_again_and_its_state_is_new() -> None:
    first = read_answer(Answer(1, [row()], True, 0), "zone-a")
    critical = read_answer(Answer(2, [row(("service:a", "critical"))], True, 0), "zone-a", first)
    assert critical["a"].endpoint is first["a"].endpoint
    assert critical["a"].state is CatalogState.CRITICAL
    changed = read_answer(Answer(3, [row(epoch="2")], True, 0), "zone-a", critical)
    assert changed["a"].endpoint is not None and changed["a"].endpoint.epoch == "2"


@pytest.mark.parametrize("rows", [None, {}, "[]", 7])
def test_no_list_is_no_answer(rows: object) -> None:
    with pytest.raises(CatalogError):
        read_answer(Answer(1, rows, True, 0), "zone-a")


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(
                ["Service", "Node", "Checks", "ID", "Meta", "Port", "Address", "CheckID", "Status", "format"]
            ),
            inner,
        ),
    ),
    max_leaves=20,
)


@given(st.lists(anything, max_size=4))
def test_no_row_raises(rows: list[object]) -> None:
    reports = read_answer(Answer(1, [*rows, row()], True, 0), "zone-a")
    assert reports["a"].endpoint is not None
