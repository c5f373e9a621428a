#!/usr/bin/env bash
# setup.sh cpu|gpu|sim: everything that the demo and the tests need, into .venv and .cache; quick when it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
flavour=$1

mkdir -p .cache
exec 9>.cache/setup.lock
flock 9 # one set-up at a time, whoever started it

deploy/setup/system.sh "$flavour"
deploy/setup/consul.sh
deploy/setup/venv.sh "$flavour"
# STOKER_MODEL names another model, and simulated engines need none.
if [[ ! ${STOKER_MODEL:-} && $flavour != sim ]]; then
  .venv/bin/python deploy/setup/model.py .cache/models/SmolLM2-135M-Instruct
fi
