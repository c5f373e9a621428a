# Sourced by the scripts beside it: how they fail, and which Python they take.
# shellcheck shell=bash

die() { echo "setup: $*" >&2; exit 1; }

newest_python() { # FLAVOUR: the newest Python that its lock is resolved for (deploy/setup/lock.sh)
  if [[ $1 == gpu ]]; then echo 3.12; else echo 3.14; fi
}

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

find_python() { # FLAVOUR: prints the first Python that fits: $PYTHON, else python3, else a versioned one
  local candidate version
  for candidate in ${PYTHON:-python3 python3.12 python3.13 python3.11 python3.14}; do
    version=$(python_version "$candidate") || continue
    if printf '%s\n' 3.11 "$version" "$(newest_python "$1")" | sort --check=silent --version-sort; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

no_python() { # FLAVOUR
  die "needs Python 3.11 to $(newest_python "$1"), and ${PYTHON:-python3} is $(python_version "${PYTHON:-python3}" ||
    echo missing); install one, or name it: make PYTHON=/path/to/python3"
}

trap 'echo "setup: $0: line $LINENO failed" >&2' ERR # whatever nobody thought of says at least where it was
