"""`make demo` as a newcomer runs it, beside a mesh of the newcomer's own: real processes, real Consul, real vLLM."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo import EXPECTED, free_base
from discovery.consul_agent import find_consul
from stoker_client.mesh import identity, state
from stoker_client.mesh.state import MeshState

ROOT = Path(__file__).resolve().parents[2]

# The demo takes a minute on two idle cores, most of it vLLM's start.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to run in with the model that set-up made: a demo of somebody else's in the repository is not ended."""
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/models").symlink_to(ROOT / ".cache/models")
    return tmp_path


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run our Python there, without the settings of whoever runs the tests."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STOKER_")}
    environ["CONSUL_BIN"] = str(find_consul(ROOT))
    return subprocess.run(
        [sys.executable, *argv],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=420,
    )


@pytest.fixture
def neighbour(folder: Path) -> Iterator[MeshState]:
    """A mesh in the default folder, on the ports that the demo would take."""
    base = str(free_base(find_consul(ROOT)))
    argv = ("-m", "stoker_client", "up", "--engine", "sim", "--zones", "1", "--detach", "--port-base", base)
    ran = run(folder, *argv)
    try:
        assert ran.returncode == 0, ran.stderr
        mesh = state.read(folder / ".cache/mesh")
        assert mesh is not None
        yield mesh
    finally:
        run(folder, "-m", "stoker_client", "down")


def test_the_demo_holds_and_leaves_its_neighbour_alone(folder: Path, neighbour: MeshState) -> None:
    ran = run(folder, str(ROOT / "deploy/demo.py"))
    shown = ran.stdout
    assert ran.returncode == 0, f"{shown}\n{ran.stderr}"
    first, killed = shown.split("$ kill -9", maxsplit=1)
    # The answer of the home zone, the catalog's rows of both, and the same answer from the other zone.
    assert EXPECTED in first and "server-zone-a-1 in zone-a · " in first
    assert first.count("$ consul catalog nodes") == 2 and first.count("model-0") == 2
    assert EXPECTED in killed and "server-zone-b-1 in zone-b · " in killed
    assert "All of it held" in killed

    assert state.read(folder / ".cache/demo") is None, "the demo left its mesh behind"
    assert state.read(folder / ".cache/mesh") == neighbour
    assert all(each.identity is not None and identity.alive(each.identity) for each in neighbour.processes)
