#!/usr/bin/env bash
# venv.sh cpu|gpu|sim: .venv with what deploy/locks pins, and Stoker itself in editable form.
#
# Stamps in .venv say what it was made from, so a second run does nothing. A changed lock is installed over the old one;
# another flavour, Python or folder gets a new environment.
set -euo pipefail
cd "$(dirname "$0")/../.."
flavour=$1
. deploy/setup/common.sh
lock=deploy/locks/$flavour.txt
log=$PWD/.cache/setup.log

run() { # WHAT, COMMAND …: quiet unless it fails
  "${@:2}" >>"$log" 2>&1 || { tail -5 "$log" >&2; die "$1 failed; is pip's index reachable? All output: $log"; }
}

[[ -e $lock ]] || die "EXTRA=$flavour: choose cpu, gpu or sim"
python=$(find_python "$flavour") || no_python "$flavour"

place="$flavour Python-$(python_version "$python") $PWD"
packages=$(cat "$lock" deploy/locks/{bootstrap,torch-cpu}.txt | sha256sum)
project=$(sha256sum <pyproject.toml)
is() { [[ -e .venv/stamps/$1 && $(<".venv/stamps/$1") == "$2" ]]; }
! { is place "$place" && is packages "$packages" && is project "$project"; } || exit 0

[[ $(uname -sm) == "Linux x86_64" || $flavour == sim ]] ||
  die "vLLM's locks are for Linux on x86-64; with EXTRA=sim the mesh runs here with simulated engines"
mkdir -p .cache
: >"$log"
if ! is place "$place"; then
  echo "setup: creating .venv ($place)"
  rm -rf .venv
  run "creating .venv" "$python" -m venv .venv
  mkdir .venv/stamps
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check)
uv=(.venv/bin/uv --no-progress)
install=("${uv[@]}" pip install --python .venv --no-deps)

# uv reads neither pip's settings nor the system's certificates: where pip is told to use another index, or trusts a
# company's own authority, so does uv.
pip_setting() { "${pip[@]}" config get "global.$1" 2>/dev/null || true; }
index=${PIP_INDEX_URL:-$(pip_setting index-url)}
cert=${PIP_CERT:-$(pip_setting cert)}
[[ ! $index ]] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
[[ ! $cert ]] || export SSL_CERT_FILE=${SSL_CERT_FILE:-$cert}
export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-true}

if ! is packages "$packages"; then
  run "installing uv" "${pip[@]}" install -q --no-deps -r deploy/locks/bootstrap.txt
  torch=$(grep -v '^#' deploy/locks/torch-cpu.txt)
  if [[ $flavour == cpu ]] && ! "${pip[@]}" list --format=freeze 2>/dev/null | grep -xF "$torch" >/dev/null; then
    echo "setup: installing $torch"
    # First from what pip was told of (a folder of wheels, a company's index), else from where uv knows PyTorch's builds.
    "${pip[@]}" install -q --no-deps "$torch" >>"$log" 2>&1 ||
      run "installing $torch" "${install[@]}" --torch-backend cpu "$torch"
  fi
  echo "setup: installing the $(grep -c '==' "$lock") packages of $lock"
  # Byte code is written now: importing vLLM takes 15 s without.
  run "installing $lock" "${install[@]}" --compile-bytecode -r "$lock"
  echo "$packages" >.venv/stamps/packages
  echo "$place" >.venv/stamps/place # not before: a first install that was cut off starts over
fi
run "installing Stoker" "${install[@]}" -e .
echo "$project" >.venv/stamps/project
