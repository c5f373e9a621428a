#!/usr/bin/env bash
# peers.sh: the peers that `make bench` measures beside the router, into .cache/peers; quick when they are there.
set -euo pipefail
cd "$(dirname "$0")/../.."
lock=deploy/locks/peers.txt
stamp=.cache/peers/lock.sha256
wanted=$(sha256sum <"$lock")
[[ ! -e $stamp || $(<"$stamp") != "$wanted" ]] || exit 0
echo "setup: installing the peers into .cache/peers"
rm -rf .cache/peers
.venv/bin/python -m venv --without-pip .cache/peers
# uv does not read pip's settings; where pip is told to use another index, so is uv.
index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip --disable-pip-version-check config get global.index-url 2>/dev/null || true)}
[[ ! $index ]] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
.venv/bin/uv --no-progress pip install --quiet --python .cache/peers/bin/python --no-deps -r "$lock"
echo "$wanted" >"$stamp"
