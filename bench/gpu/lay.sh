#!/usr/bin/env bash
# Lays what pack.sh made into a checkout, a folder for each piece, REPO/.gpu/1, REPO/.gpu/2, … (ignored by git), each with
# the manifest, so that each can be sent along with the tree by itself:  lay.sh OUT REPO
set -euo pipefail
out=$1 gpu=$2/.gpu
rm -rf "$gpu"
number=0
for piece in "$out"/piece.*; do
  number=$((number + 1))
  mkdir -p "$gpu/$number"
  ln "$piece" "$gpu/$number/" 2>/dev/null || cp "$piece" "$gpu/$number/"
  cp "$out/manifest" "$gpu/$number/"
done
echo "lay: $number pieces in $gpu"
