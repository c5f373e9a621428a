#!/usr/bin/env bash
# system.sh cpu|gpu|sim: the few system packages that a fresh Debian or Ubuntu lacks; installs only what is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
flavour=$1
. deploy/setup/common.sh

need=()
if python=$(find_python "$flavour"); then
  # Debian keeps venv and pip's bundle apart from each of its Pythons.
  "$python" -c 'import ensurepip, venv' 2>/dev/null || need+=("$(basename "$python")-venv")
elif [[ ! ${PYTHON:-} ]] && ! command -v python3 >/dev/null; then
  need+=(python3 python3-venv)
else
  no_python "$flavour"
fi
[[ -e /etc/ssl/certs/ca-certificates.crt || -e /etc/pki/tls/certs/ca-bundle.crt ]] || need+=(ca-certificates)
if [[ $flavour == cpu ]]; then
  # vLLM's CPU kernels link against it.
  compgen -G '/usr/lib*/libnuma.so.1' >/dev/null || compgen -G '/usr/lib/*/libnuma.so.1' >/dev/null || need+=(libnuma1)
elif [[ $flavour == gpu ]]; then
  # Triton compiles its launchers when a model starts.
  command -v cc >/dev/null || need+=(gcc libc6-dev)
  include=$("${python:-python3}" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null) || include=
  [[ -e $include/Python.h ]] || need+=("$(basename "${python:-python3}")-dev")
fi
[[ ${need[*]} ]] || exit 0

command -v apt-get >/dev/null || die "install these with your package manager, then run make again: ${need[*]}"
as_root=()
if [[ $(id -u) != 0 ]]; then
  command -v sudo >/dev/null || die "run as root: apt-get install ${need[*]}"
  as_root=(sudo)
  [[ -t 0 ]] || as_root+=(-n) # nobody is there to type a password
fi
echo "setup: installing system packages: ${need[*]}"
apt_get() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >"$log" 2>&1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install=(install -y --no-install-recommends "${need[@]}")
# A fresh image has no package lists, a used one has old ones: update only when the install does not go through.
if ! apt_get "${install[@]}" && ! { apt_get update && apt_get "${install[@]}"; }; then
  tail -5 "$log" >&2
  die "could not install them; run as root: apt-get update && apt-get install ${need[*]}"
fi
if [[ ${need[*]} == *python3\ * ]]; then
  find_python "$flavour" >/dev/null || no_python "$flavour"
fi
