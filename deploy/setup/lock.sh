#!/usr/bin/env bash
# lock.sh: compiles deploy/locks/{bootstrap,sim,cpu,gpu}.txt from pyproject.toml, peers.txt from peers.in, for Linux on x86-64.
#
# One lock serves every Python: it is resolved for the oldest, then, holding those versions, for each newer one, which
# can only add what the newer one needs besides. Versions already in a lock stay unless UPGRADE=1.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly locks=deploy/locks
uv=.venv/bin/uv
export UV_CUSTOM_COMPILE_COMMAND="make lock"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

names() { sed -nE 's/^([a-z0-9-]+)==.*/\1/p' "$1" | sort; }

compile() { # NAME "PYTHON …" [OPTION of uv …]
  local name=$1 pythons held=$locks/constraints.txt python out first
  read -ra pythons <<<"$2"
  shift 2
  for python in "${pythons[@]}"; do
    echo "lock: $name, Python $python"
    out=$tmp/$name-$python.txt
    # uv prefers the versions of an output file that is already there.
    [[ ${UPGRADE:-} || ! -e $locks/$name.txt ]] || cp "$locks/$name.txt" "$out"
    "$uv" pip compile --quiet --no-annotate --generate-hashes --python-version "$python" \
      --python-platform x86_64-manylinux_2_28 --constraint "$locks/constraints.txt" --constraint "$held" \
      --output-file "$out" "$@"
    held=$out
  done
  first=$tmp/$name-${pythons[0]}.txt
  names "$first" | comm -23 - <(names "$out") >"$tmp/lost"
  if [[ -s $tmp/lost ]]; then
    echo "lock: $name: needed on Python ${pythons[0]} but not on ${pythons[-1]}, so one lock no longer serves both:" \
      "$(paste -sd' ' "$tmp/lost"); give each Python its own lock" >&2
    exit 1
  fi
  mv "$out" "$locks/$name.txt"
}

compile bootstrap "3.11" --group bootstrap
compile sim "3.11 3.12 3.13 3.14" pyproject.toml --extra dev
compile cpu "3.11 3.12 3.13 3.14" pyproject.toml --extra dev --extra cpu \
  --config-file "$locks/cpu.uv.toml" --no-emit-package torch
# flashinfer, which vLLM wants on GPUs, asks for a cuda-python that stops at 3.12.
compile gpu "3.11 3.12" pyproject.toml --extra dev --extra gpu
# The benchmarks' peers share no environment with us, nor our constraints: they get what they ask for.
"$uv" pip compile --quiet --no-annotate --generate-hashes --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --output-file "$locks/peers.txt" "$locks/peers.in"
