"""LoRA adapters with random weights, large enough that the greedy output of the model is another one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

QUERY = ("self_attn.q_proj",)
LINEAR = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


def random_adapter(
    folder: Path, model: Path, seed: int, *, rank: int = 8, modules: Sequence[str] = QUERY, scale: float = 0.3
) -> Path:
    """Write one for some of the projections of every layer of a Llama in `model`. Returns its folder."""
    # Come with vLLM, and only then are there adapters.
    import numpy
    from safetensors.numpy import save_file

    config = json.loads((model / "config.json").read_text())
    random, weights = numpy.random.default_rng(seed), {}
    for layer in range(config["num_hidden_layers"]):
        for module in modules:
            inward, outward = _shape(config, module)
            for name, shape in (("lora_A", (rank, inward)), ("lora_B", (outward, rank))):
                drawn = (random.standard_normal(shape) * scale).astype(numpy.float32)
                weights[f"base_model.model.model.layers.{layer}.{module}.{name}.weight"] = drawn
    folder.mkdir(parents=True)
    about: dict[str, Any] = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    about["target_modules"] = [module.rpartition(".")[2] for module in modules]
    (folder / "adapter_config.json").write_text(json.dumps(about))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def _shape(config: dict[str, Any], module: str) -> tuple[int, int]:
    """How many numbers go into a projection, and how many come out."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    match module.rpartition(".")[2]:
        case "q_proj":
            return hidden, heads * head
        case "k_proj" | "v_proj":
            return hidden, config["num_key_value_heads"] * head
        case "o_proj":
            return heads * head, hidden
        case "down_proj":
            return inner, hidden
        case _:
            return hidden, inner
