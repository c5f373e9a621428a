"""A request for a base and its LoRA adapter is one for the adapter: a model like others, and routed like them."""

from router.snapshot import Snapshot
from stoker.v1.generation_pb2 import Generation
from stoker_common.adapters import check_adapter
from stoker_common.refusal import Refusal, not_found


def settle_model(generation: Generation, snapshot: Snapshot) -> None:
    """Have the request name as its model what is to answer it, in place: from here on there is one spelling.

    Raises Refusal: NOT_FOUND for what no server lists, INVALID_ARGUMENT for an adapter of another model.
    """
    model, adapter = generation.model, generation.lora_adapter
    if model not in snapshot.models:
        raise _unknown("model", model, snapshot)
    if not adapter:
        return
    if adapter not in snapshot.models:
        raise _unknown("lora_adapter", adapter, snapshot)
    check_adapter(model, adapter, snapshot.bases.get(adapter, ""))
    generation.model, generation.lora_adapter = adapter, ""


def _unknown(field: str, name: str, snapshot: Snapshot) -> Refusal:
    names = snapshot.bases if field == "lora_adapter" else snapshot.models
    known = ", ".join(sorted(names)[:20]) or "none yet"
    what = "adapter" if field == "lora_adapter" else "model"
    return not_found(
        f"no server has the {what} {name!r}; the {what}s are: {known}",
        field=f"generation.{field}",
        reason="MODEL_NOT_FOUND",
    )
