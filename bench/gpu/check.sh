#!/usr/bin/env bash
# On the GPU host, once the kit is unpacked: what there is, and whether everything that we import can be (20 s).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || echo "check: no GPU"
echo "check: $(nproc) cores, $(python3 --version), $(consul version | head -1)"
python3 - <<'PY'
import importlib, os, pathlib, sys, time
from importlib.metadata import entry_points, version

began, failed = time.monotonic(), []
for package in ("discovery", "router", "model_server", "stoker_common", "stoker_client", "bench"):
    for file in sorted(pathlib.Path(package).rglob("*.py")):
        name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        # What runs when it is imported, and what another environment's programs are.
        if file.name == "__main__.py" or "vllm" in name or name in ("bench.locustfile", "bench.relay.plots", "bench.routing.plots"):
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
print(f"check: ours imported in {time.monotonic() - began:.1f} s, failed: {failed or 'none'}")
print("check:", {name: version(name) for name in ("grpcio", "protobuf", "aiohttp", "pydantic", "uvloop")})
print("check: vLLM plugins", [each.name for each in entry_points(group="vllm.general_plugins")])
began = time.monotonic()
try:
    import vllm
    from model_server.engines import vllm_api, vllm_engine

    print(f"check: vLLM {vllm_api.version()} imported in {time.monotonic() - began:.1f} s")
except Exception as error:
    failed.append(f"vllm: {type(error).__name__}: {error}")
    print(f"check: {failed[-1]}")
sys.exit(bool(failed))
PY
