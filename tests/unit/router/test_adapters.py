"""One spelling for an adapter, and what is refused on the way to it."""

import pytest

from discovery.catalog import CatalogState
from discovery.endpoint import ModelState, Residency
from router.adapters import settle_model
from router.snapshot import Snapshot
from stoker.v1.generation_pb2 import Generation
from stoker_common.refusal import Code, Refusal
from tests.unit.router.builders import HOT, MODEL, endpoint, snapshot

pytestmark = pytest.mark.unit

ADAPTER = ModelState("tone@1", Residency.STAGED, 4096, 15.0, base=MODEL)
OTHER = ModelState("other", Residency.HOT, 4096)
THERE = snapshot(endpoint("a-1", models=(HOT, OTHER, ADAPTER)), endpoint("a-2"))


def settled(model: str, adapter: str = "", there: Snapshot = THERE) -> Generation:
    generation = Generation(model=model, lora_adapter=adapter, text="hello")
    settle_model(generation, there)
    return generation


@pytest.mark.parametrize(("model", "adapter"), [(MODEL, "tone@1"), ("tone@1", ""), ("tone@1", "tone@1")])
def test_however_it_was_asked_for_it_is_the_model(model: str, adapter: str) -> None:
    assert settled(model, adapter) == Generation(model="tone@1", text="hello")


def test_what_has_no_adapter_stays_as_it_is() -> None:
    assert settled(MODEL) == Generation(model=MODEL, text="hello")


@pytest.mark.parametrize(
    ("model", "adapter", "field", "code", "says"),
    [
        ("x", "", "generation.model", Code.NOT_FOUND, "the models are: m, other, tone@1"),
        (MODEL, "x", "generation.lora_adapter", Code.NOT_FOUND, "the adapters are: tone@1"),
        (MODEL, "other", "generation.lora_adapter", Code.INVALID_ARGUMENT, "no adapter"),
        ("other", "tone@1", "generation.lora_adapter", Code.INVALID_ARGUMENT, "an adapter of 'm'"),
    ],
)
def test_refusals_name_the_field(model: str, adapter: str, field: str, code: Code, says: str) -> None:
    with pytest.raises(Refusal, match=says) as refused:
        settled(model, adapter)
    assert (refused.value.field, refused.value.code) == (field, code)


def test_an_adapter_that_nobody_can_serve_now_is_known_all_the_same() -> None:
    leaving = snapshot(endpoint("a-1", models=(HOT, ADAPTER)), states={"a-1": CatalogState.LEAVING})
    assert settled(MODEL, "tone@1", leaving).model == "tone@1"
