"""Whether a model's weights are whole on the local disk: a fetch that broke off leaves files that are too short."""

import json
import struct
from pathlib import Path

# The length of a safetensors file's header stands in its first eight bytes (the format's own limit: 100 MB).
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER_BYTES = 100_000_000


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds a configuration and at least one file of weights, and every one is as long as its header
    says. Reads headers only."""
    try:
        json.loads((folder / "config.json").read_bytes())
        weights = sorted(folder.glob("*.safetensors"))
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            named = set(json.loads(index.read_bytes())["weight_map"].values())
            if named - {file.name for file in weights}:
                return False
        return bool(weights) and all(_is_whole(file) for file in weights)
    except (OSError, ValueError, KeyError, AttributeError, struct.error):
        return False


def is_whole_adapter(folder: Path) -> bool:
    """The same of a LoRA adapter's folder."""
    try:
        json.loads((folder / "adapter_config.json").read_bytes())
        return _is_whole(folder / "adapter_model.safetensors")
    except (OSError, ValueError, KeyError, AttributeError, struct.error):
        return False


def _is_whole(file: Path) -> bool:
    with file.open("rb") as opened:
        (length,) = _LENGTH.unpack(opened.read(_LENGTH.size))
        if length > _LONGEST_HEADER_BYTES:
            return False
        header = json.loads(opened.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return file.stat().st_size == int(_LENGTH.size + length + max(ends, default=0))
