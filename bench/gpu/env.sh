# Sourced: where the kit is, and what programs on the GPU host need to find it. KIT may be set before.
export KIT=${KIT:-$HOME/kit}
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PATH=$KIT/bin:$PATH PYTHONPATH=$KIT/site:$repo:$repo/generated PYTHONUNBUFFERED=1
export CONSUL_BIN=$KIT/bin/consul STOKER_MODEL=$KIT/models/SmolLM2-135M-Instruct
# FlashInfer's sampler compiles itself with nvcc at the first request.
export HF_HUB_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1
unset PYTHONDONTWRITEBYTECODE
cd "$repo"
