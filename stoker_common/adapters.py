"""LoRA adapters are models: `model=ADAPTER` asks for one, and so does `model=BASE` with `lora_adapter=ADAPTER`."""

from stoker.v1.generation_pb2 import Generation
from stoker_common.refusal import invalid


def asked_model(generation: Generation) -> str:
    """The name of what is to answer: the adapter's, where one is asked for."""
    return generation.lora_adapter or generation.model


def check_adapter(model: str, adapter: str, base: str) -> None:
    """Whether `adapter`, of `base`, goes with `model`; `base` is empty where it is no adapter. Raises Refusal."""
    if not base:
        raise invalid("generation.lora_adapter", f"{adapter!r} is a model and no adapter; ask for it as the model")
    if model not in (base, adapter):
        text = f"{adapter!r} is an adapter of {base!r}, not of {model!r}; ask for {base!r}, or for the adapter alone"
        raise invalid("generation.lora_adapter", text)
