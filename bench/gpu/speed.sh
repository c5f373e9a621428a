#!/usr/bin/env bash
# Tokens a second: speed.sh SECONDS PART… [-- MORE OF bench.throughput]   PART: engine, routers, front
# Rows go to $OUT/throughput.jsonl as they come. Variables: ROUNDS (3). An engine part of three rounds took 260 s, of which
# 100 loaded two engines on one GPU.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parts=() more=()
while (($#)); do
  if [[ $1 == -- ]]; then
    shift
    more=("$@")
    break
  fi
  parts+=("$1")
  shift
done
measure() { # PART MOST FLAGS…
  local part=$1 most=$2
  shift 2
  bounded "speed-$part" "$most" python3 -m bench.throughput "$part" --rounds "${ROUNDS:-3}" \
    --logs "$scratch/$part" --out "$out/throughput.jsonl" "$@"
}
# 256 streams of 576 tokens fill 18 GiB of this shape's cache; two of it fit in 80 GB.
engine=(--vllm-load-format dummy --vllm-max-model-len 4096 --vllm-gpu-memory-utilization 0.4)
engine+=(--vllm-kv-cache-memory-bytes "${KV_BYTES:-$((19 << 30))}")
for part in "${parts[@]}"; do
  case $part in
    engine) measure engine "${ENGINE_S:-420}" --together --model "${MODEL:-$big}" "${more[@]}" -- "${engine[@]}" ;;
  XX
    front) measure front 180 "${more[@]}" ;;
    *) say "no part $part: engine, routers, front" && exit 2 ;;
  esac
done
say "done"
