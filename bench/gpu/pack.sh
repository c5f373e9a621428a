#!/usr/bin/env bash
# Packs what a GPU host without a network lacks, and splits it into pieces that travel one at a time:
#   pack.sh OUT [VLLM]
# VLLM: a folder that ../shared/gpu/pack.sh has filled, filled now if it is empty; default: OUT/vllm. OUT gets three archives,
# each kept for the next time (remove it to make it anew), and their bytes in a row as piece.01, piece.02, …:
#   mesh     what we import (requirements.txt), our vLLM plugins' entry points, Consul, a Llama-8B shape, tokenizers
#   vllm     vLLM for the host's torch
#   smollm2  the demo model's real weights
# Variables: ARCHIVES, which of them ("mesh vllm"); PIECE, a piece's size (52M: with the tree, less than the 64 MiB that travel
# at a time); HOST_PYTHON (3.12).
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
vllm=${2:-$out/vllm}
host_python=${HOST_PYTHON:-3.12}
model=SmolLM2-135M-Instruct
python=${PYTHON:-python3}
made() { [[ -e $out/$1 ]] || { "pack_${1%.tar.xz}" && mv "$out/$1.part" "$out/$1"; }; }

pack_mesh() {
  local work
  work=$(mktemp -d)
  mkdir -p "$work/wheels" "$work/kit/site" "$work/kit/bin" "$work/kit/models/$model" "$work/kit/models/llama8b"
  "$python" - "$here/requirements.txt" "$root/deploy/locks/cpu.txt" >"$work/pinned" <<'PY'
import pathlib, re, sys
wanted, lock = (pathlib.Path(path).read_text() for path in sys.argv[1:])
pins = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", lock, re.MULTILINE))
names = [line for line in wanted.split("\n") if line and not line.startswith("#")]
print("\n".join(name if "==" in name else f"{name}=={pins[name]}" for name in names))
PY
  local platforms=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64) v
  for v in 2_5 2_12 2_17 2_24 2_26 2_27 2_28 2_34; do platforms+=(--platform "manylinux_${v}_x86_64"); done
  "$python" -m pip --disable-pip-version-check download -q --no-deps --only-binary=:all: --implementation cp \
    --python-version "$host_python" "${platforms[@]}" -d "$work/wheels" -r "$work/pinned"
  local wheel
  for wheel in "$work"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$work/kit/site"; done
  # A wheel's scripts: py-spy is nothing else.
  find "$work/kit/site" -path '*.data/scripts/*' -type f -exec install -m 755 -t "$work/kit/bin" {} +
  rm -rf "$work"/kit/site/*.data
  # vLLM finds plugins by the metadata of what is installed.
  "$python" - "$root/pyproject.toml" "$work/kit/site" <<'PY'
import pathlib, sys, tomllib
project = tomllib.loads(pathlib.Path(sys.argv[1]).read_text())["project"]
about = pathlib.Path(sys.argv[2], f"{project['name']}-{project['version']}.dist-info")
about.mkdir()
(about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
group = "vllm.general_plugins"
lines = [f"{name} = {value}" for name, value in project["entry-points"][group].items()]
(about / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
PY
  cp -L "$root/.cache/bin/consul" "$work/kit/bin/consul"
  find -L "$root/.cache/models/$model" -type f ! -name '*.safetensors' -exec cp {} "$work/kit/models/$model/" \;
  cp "$work/kit/models/$model"/*token* "$work/kit/models/$model"/*.jinja "$work/kit/models/llama8b/"
  cp "$here/llama8b.json" "$work/kit/models/llama8b/config.json"
  tar c -C "$work/kit" . | xz -T0 -7 >"$out/mesh.tar.xz.part"
  rm -rf "$work"
}

pack_vllm() {
  compgen -G "$vllm/part.*" >/dev/null || bash "$root/../shared/gpu/pack.sh" "$vllm" "$python"
  cat "$vllm"/part.* >"$out/vllm.tar.xz.part"
}

pack_smollm2() {
  tar c -C "$root/.cache" --dereference "models/$model" | xz -T0 -6 >"$out/smollm2.tar.xz.part"
}

rm -f "$out"/piece.* "$out/manifest"
# name, bytes, and where it is unpacked; then the pieces.
read -ra archives <<<"${ARCHIVES:-mesh vllm smollm2}"
for name in "${archives[@]}"; do
  began=$SECONDS
  made "$name.tar.xz"
  bytes=$(stat -c %s "$out/$name.tar.xz")
  into=.
  [[ $name != vllm ]] || into=site
  echo "archive $name $bytes $into" >>"$out/manifest"
  echo "pack: $name, $((bytes >> 20)) MiB, $((SECONDS - began)) s"
done
for name in "${archives[@]}"; do cat "$out/$name.tar.xz"; done | split -b "${PIECE:-52M}" --numeric-suffixes=1 -a 2 - "$out/piece."
for piece in "$out"/piece.*; do
  echo "piece $(basename "$piece") $(stat -c %s "$piece") $(sha256sum "$piece" | cut -c1-64)" >>"$out/manifest"
done
cat "$out/manifest"
