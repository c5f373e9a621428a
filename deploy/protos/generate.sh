#!/usr/bin/env bash
# generate.sh [--check]: writes generated/ from protos/; with --check it only says whether that would change anything.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

mapfile -t protos < <(find protos -name '*.proto' | sort)
# protoc finds mypy-protobuf's plugins on PATH.
PATH=$PWD/.venv/bin:$PATH .venv/bin/python -m grpc_tools.protoc -I protos \
  --python_out="$out" --grpc_python_out="$out" \
  --mypy_out=quiet:"$out" --mypy_grpc_out=quiet,only_async:"$out" "${protos[@]}"

changed=$(diff -rq --exclude=__pycache__ generated "$out") || true
[[ $changed ]] || exit 0
if [[ ${1:-} == --check ]]; then
  echo "${changed//$out/protos}" >&2
  echo "protos: generated/ is not what protos/ gives: run make proto and commit both" >&2
  exit 1
fi
mkdir -p generated
find generated -type f -not -path '*/__pycache__/*' | while read -r file; do
  [[ -e $out/${file#generated/} ]] || rm "$file"
done
cp -r "$out/." generated/
echo "protos: wrote generated/"
