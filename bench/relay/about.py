"""Where and with what a run was made."""

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.commit import commit
from bench.relay.systems import PEERS


def about(arguments: Sequence[str]) -> dict[str, str]:
    """Date, command, commit, machine, load before the run's end, versions."""
    versions = {name: version(name) for name in ("grpcio", "protobuf", "uvloop")}
    versions |= _peer_versions()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", "bench.relay", *arguments]),
        "commit": commit(),
        "machine": f"{os.cpu_count()} cores, {_cpu_model()}, Linux {platform.release()}",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "load_average": " ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _peer_versions() -> dict[str, str]:
    found = {}
    for name in ("vllm_router", "smg"):
        for folder in PEERS.glob(f"lib/python*/site-packages/{name}-*.dist-info"):
            found[name.replace("_", "-")] = folder.name.removeprefix(f"{name}-").removesuffix(".dist-info")
    return found
