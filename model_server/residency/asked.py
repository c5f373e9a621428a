"""Which of a server's models a request is for: a model, or an adapter by its own name or by its base's and its own."""

from model_server.residency.held import Held
from model_server.residency.models import Models
from stoker.v1.generation_pb2 import Generation
from stoker_common.adapters import check_adapter


def asked(models: Models, generation: Generation) -> Held:
    """The model. Raises Refusal naming the field that is wrong."""
    model = models.find(generation.model, "generation.model")
    if not generation.lora_adapter:
        return model
    adapter = models.find(generation.lora_adapter, "generation.lora_adapter")
    check_adapter(model.name, adapter.name, adapter.base.name if adapter.base else "")
    return adapter
