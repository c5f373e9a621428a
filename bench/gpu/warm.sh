#!/usr/bin/env bash
# The warm path on real vLLM: warm.sh SECONDS PART…   PART: policies, residency, levels, lora
# Variables: GPUS (1): the servers of `policies` share one or have one each; ROUNDS (2). The other parts take the first GPU of
# CUDA_VISIBLE_DEVICES, so that two of them can be run side by side.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
gpus=${GPUS:-1}
shape=(--vllm-load-format dummy --vllm-max-model-len 8192 --vllm-gpu-memory-utilization 0.3)
shape+=(--vllm-kv-cache-memory-bytes "${KV_BYTES:-$((8 << 30))}")
eager=(--vllm-load-format dummy --vllm-enforce-eager --vllm-max-model-len 4096)
eager+=(--vllm-kv-cache-memory-bytes "${KV_BYTES:-$((4 << 30))}")

policies() {
  bounded warm-policies "${POLICIES_S:-300}" python3 -m bench.warm --servers 2 --gpus "$gpus" --model "${MODEL:-$big}" \
    --policies round-robin,least-outstanding,stoker --rounds "${ROUNDS:-2}" --seconds "${ROUND_S:-15}" --warm-up 6 \
    --sessions "${SESSIONS:-24}" --first-tokens "${FIRST_TOKENS:-2000}" --turn-tokens 200 --answer-tokens 64 --form ids \
    --logs "$scratch/policies" --out "$out/warm-policies-$gpus.jsonl" -- "${shape[@]}"
  gzip -f "$out/warm-policies-$gpus.jsonl" || true
}
# One server, two models, one hot at a time. The small one first: whoever has just become hot stays for five times what it took
# to load, unless nobody is expected to ask for it in that time.
residency() {
  bounded warm-residency 240 python3 -m bench.warm --rounds 0 --model "$small" --name small --cycles 2 \
    --residency "big=${MODEL:-$big}" --logs "$scratch/residency" --out "$out/warm-residency.jsonl" -- "${eager[@]}"
}
levels() {
  bounded warm-levels 150 python3 -m bench.warm.levels --model "$small" --load-format "$weights" \
    --out "$out/warm-levels.json"
}
lora() {
  bounded warm-lora "${LORA_S:-240}" python3 -m bench.warm.adapters --model "${MODEL:-$small}" \
    --second "other=$big" --streams "${STREAMS:-32}" --logs "$scratch/lora" --out "$out/warm-lora.jsonl" \
    -- "${eager[@]:2}" --vllm-load-format "$weights"
}
for part in "$@"; do
  case $part in
    policies | residency | levels | lora) "$part" ;;
    *) say "no part $part: policies, residency, levels, lora" && exit 2 ;;
  esac
done
say "done"
