# Sourced by speed.sh, warm.sh and faults.sh with the seconds that there are: what bounds each measurement, keeps what it
# left in $OUT, and ends what it left running.
set -euo pipefail
budget=$1
shift
# What this run's files are told apart by from those of a run beside it.
label=$(basename "$0" .sh)${1:+-$1}
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
out=${OUT:?set it to the folder whose files come back}
scratch=$(mktemp -d)
# Servers run in sessions of their own and outlive whoever is killed: they are told by this variable.
export STOKER_GPU_RUN=$$-$RANDOM
# What a measurement needs to stop its servers in order, seconds.
stop_s=${STOP_S:-30}
big=$KIT/models/llama8b small=$STOKER_MODEL
# Random weights, where the real ones were not brought.
weights=auto
[[ -e $small/model.safetensors ]] || weights=dummy

say() { echo "[$SECONDS s] $*"; }

# bounded NAME MOST COMMAND…: for MOST seconds or what is left, whichever is less; its output goes to $OUT as it comes.
bounded() {
  local name=$1 most=$2 limit began=$SECONDS status=0
  shift 2
  limit=$((budget - SECONDS - stop_s))
  if ((limit >= most)); then
    limit=$most
  elif ((limit < 20)); then
    say "$name: left out, $((budget - SECONDS)) s are left"
    return
  fi
  say "$name: at most $limit s: $*"
  # Not through a pipe, which who is left behind would hold open.
  timeout -s INT -k "$stop_s" "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  sweep
  tail -c 4000 "$out/$name.log"
  say "$name: $((SECONDS - began)) s, status $status"
}

# End what a measurement left behind.
sweep() {
  local each pids=()
  for each in /proc/[0-9]*; do
    [[ ${each#/proc/} != "$$" && ${each#/proc/} != "$BASHPID" ]] || continue
    if grep -qz "^STOKER_GPU_RUN=$STOKER_GPU_RUN\$" "$each/environ" 2>/dev/null; then pids+=("${each#/proc/}"); fi
  done
  [[ ${#pids[@]} == 0 ]] || kill -KILL "${pids[@]}" 2>/dev/null || true
}

# The processes' logs, in one file: few come back.
keep_logs() {
  [[ -z $(find "$scratch" -name '*.log' -print -quit) ]] ||
    (cd "$scratch" && find . -name '*.log' -print0 | tar cz --null -T - -f "$out/logs-$label.tar.gz")
  rm -rf "$scratch"
}
trap 'sweep; keep_logs' EXIT
