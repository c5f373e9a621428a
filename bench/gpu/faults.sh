#!/usr/bin/env bash
# Real vLLM under faults, 64 streams on three servers of one GPU: faults.sh SECONDS MODE   MODE: restore, replay, prefill
# Needs the small model's real weights. Variables: KILLS (1), CUTS (6), CONTROLS (2), STREAMS (64), SERVERS (3; 2 for replay).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
mode=${1:?restore, replay or prefill}
servers=3
case $mode in
  restore) how=() ;;
  replay) servers=2 how=(--env VLLM_USE_V2_MODEL_RUNNER=0 --env VLLM_PLUGINS=stoker_parent_death) ;;
  prefill) how=(--env VLLM_PLUGINS=stoker_parent_death --kinds greedy,plain) ;;
  *) say "no mode $mode: restore, replay, prefill" && exit 2 ;;
esac
[[ $weights == auto ]] || say "random weights: a control may not repeat"
bounded "faults-$mode" "${FAULTS_S:-540}" python3 -m bench.faults_vllm --kills "${KILLS:-1}" --cuts "${CUTS:-6}" \
  --controls "${CONTROLS:-2}" --streams "${STREAMS:-64}" --servers "${SERVERS:-$servers}" --tokens "${TOKENS:-128}" \
  --model "$small" --logs "$scratch/faults" --out "$out/faults-$mode.jsonl" "${how[@]}" -- --vllm-load-format "$weights" \
  --vllm-enforce-eager --vllm-kv-cache-memory-bytes "${KV_BYTES:-$((2 << 30))}" --vllm-gpu-memory-utilization 0.2
say "done"
