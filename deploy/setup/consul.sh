#!/usr/bin/env bash
# consul.sh: makes sure there is a Consul: $CONSUL_BIN, else the one on PATH, else Debian's or Ubuntu's, put into .cache/bin.
#
# Debian 12 and Ubuntu 24.04 no longer package it, so it is taken from an older suite of the mirrors that this machine's
# apt already uses. apt checks the signatures; its sources, its lists and PATH stay as they are. Needs no root.
set -euo pipefail
cd "$(dirname "$0")/../.."
dest=.cache/bin/consul

. deploy/setup/common.sh
no_consul() { die "no Consul: $1; install Consul 1.8 or newer and put it on PATH, or set CONSUL_BIN to it"; }

if [[ ${CONSUL_BIN:-} ]]; then
  "$CONSUL_BIN" version >/dev/null 2>&1 || no_consul "CONSUL_BIN=$CONSUL_BIN does not run"
  exit 0
fi
[[ ! -x $dest ]] && ! command -v consul >/dev/null || exit 0

for tool in apt-get dpkg-deb; do
  command -v $tool >/dev/null || no_consul "there is no $tool to fetch it with"
done
case $(. /etc/os-release && echo "$ID ${ID_LIKE:-}") in
  *ubuntu*) suite=jammy component=universe keys=/usr/share/keyrings/ubuntu-archive-keyring ;;
  *debian*) suite=bullseye component=main keys=/usr/share/keyrings/debian-archive-keyring ;;
  *) no_consul "only Debian's and Ubuntu's package is known here" ;;
esac
key=$(compgen -G "$keys.[gp]*" | head -1) || no_consul "there is no keyring $keys.* to check a package with"

echo "setup: fetching Consul from $suite"
mkdir -p .cache/bin
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
mkdir -p "$t"/{lists,cache/archives}/partial
: >"$t/status"
apt=(apt-get -o Dir::State="$t" -o Dir::State::Lists="$t/lists" -o Dir::State::status="$t/status"
  -o Dir::Cache="$t/cache" -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none
  -o APT::Update::Error-Mode=any)
ours=(-o Dir::Etc::SourceList="$t/one.list" -o Dir::Etc::SourceParts=/dev/null)

# apt's own parser lists the mirrors, so that every form of source, mirror list and proxy works.
mirrors=$("${apt[@]}" update --print-uris 2>/dev/null | sed -n "s|^'\(.*\)/dists/.*|\1|p" | sort -u) || true
for mirror in $mirrors; do
  echo "deb [signed-by=$key] $mirror $suite $component" >"$t/one.list"
  "${apt[@]}" "${ours[@]}" update >"$t/log" 2>&1 &&
    (cd "$t" && "${apt[@]}" "${ours[@]}" download consul && dpkg-deb -x consul_*.deb root) >>"$t/log" 2>&1 && break
done
[[ -x $t/root/usr/bin/consul ]] || no_consul "$suite's package is not on the mirrors that apt uses here"

declare -A known=(
  [bullseye/amd64]=e4e888bba104daba1d9161f49bfc52649a7e4efd45b1a7ead5bc54f2cb9c89d9
)
sum=${known[$suite/$(dpkg --print-architecture)]:-} # elsewhere apt's own check has to do
[[ ! $sum ]] || echo "$sum  $(ls "$t"/consul_*.deb)" | sha256sum -c --quiet - >/dev/null 2>&1 ||
  no_consul "the package that was fetched has another SHA-256 than deploy/setup/consul.sh expects"
# Beside the target, then renamed: nobody ever sees half a binary.
install -m 755 "$t/root/usr/bin/consul" "$dest.new"
mv "$dest.new" "$dest"
