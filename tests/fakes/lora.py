"""A LoRA adapter with random weights, large enough that the greedy output of the model is another one."""

import json
from pathlib import Path

RANK = 8


def random_adapter(folder: Path, model: Path, seed: int, *, scale: float = 0.3) -> Path:
    """Write one for the query projections of every layer of a Llama in `model`. Returns its folder."""
    # Come with vLLM, and only then are there adapters.
    import numpy
    from safetensors.numpy import save_file

    config = json.loads((model / "config.json").read_text())
    hidden, random = config["hidden_size"], numpy.random.default_rng(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for name, shape in (("lora_A", (RANK, hidden)), ("lora_B", (hidden, RANK))):
            weights[f"{module}.{name}.weight"] = (random.standard_normal(shape) * scale).astype(numpy.float32)
    folder.mkdir(parents=True)
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder
