#!/usr/bin/env bash
# On the GPU host, for each piece as it comes:  unpack.sh FOLDER  (.gpu/1, .gpu/2, …). Keeps the piece, and unpacks into the kit
# every archive whose bytes are all there. What is there already costs nothing to name again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
in=${KIT_IN:-$HOME/in}
mkdir -p "$in" "$KIT/site"
cp "$1"/* "$in/"
while read -r kind name bytes sum; do
  [[ $kind == piece && -e $1/$name ]] || continue
  echo "$sum  $in/$name" | sha256sum --check --quiet || { echo "unpack: $name came damaged" >&2 && exit 1; }
done <"$in/manifest"

# Pieces follow each other without a gap up to here.
there=0
while read -r kind name bytes _; do
  [[ $kind == piece ]] || continue
  [[ -e $in/$name && $(stat -c %s "$in/$name") == "$bytes" ]] || break
  there=$((there + bytes))
done <"$in/manifest"

from=0
while read -r kind name bytes into; do
  [[ $kind == archive ]] || continue
  if ((from + bytes > there)); then
    echo "unpack: $name waits for $(((from + bytes - there) >> 20)) MiB more"
  elif [[ ! -e $KIT/.$name ]]; then
    began=$SECONDS
    cat "$in"/piece.* >"$in/joined"
    dd if="$in/joined" iflag=skip_bytes,count_bytes bs=1M skip="$from" count="$bytes" status=none | xz -dc -T0 | tar x -C "$KIT/$into"
    if [[ $into == site ]]; then # else each process that imports vLLM first compiles it
      python3 -m compileall -q -j 0 "$KIT/site" >/dev/null || true # some wheels carry code of other Pythons
    fi
    touch "$KIT/.$name"
    echo "unpack: $name is there, $((SECONDS - began)) s"
  fi
  from=$((from + bytes))
done <"$in/manifest"
