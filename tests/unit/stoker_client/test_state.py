"""The state file."""

from pathlib import Path

import pytest

from stoker_client.mesh import state
from stoker_client.mesh.identity import Identity
from stoker_client.mesh.state import Kind, MeshState, Phase, ProcessState

pytestmark = pytest.mark.unit

ROUTER = ProcessState(
    "router-zone-a", Kind.ROUTER, "zone-a", Phase.UP, "h:1", "/log", "h:2", Identity(5, 6, "b"), 1, "n"
)
SERVER = ProcessState("server-zone-a-1", Kind.SERVER, "zone-a", Phase.RESTARTING, "h:3", "/log")
MESH = MeshState(Identity(1, 2, "b"), Phase.UP, "sim", "", 3.5, 40.0, (SERVER, ROUTER))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    state.write(tmp_path, MESH)
    assert state.read(tmp_path) == MESH
    assert MESH.routers() == ("h:1",)
    state.remove(tmp_path)
    assert state.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"supervisor": 1}', '{"supervisor": {"pid": 1}}'])
def test_a_file_of_another_version_is_no_mesh(tmp_path: Path, text: str) -> None:
    (tmp_path / state.FILE).write_text(text)
    assert state.read(tmp_path) is None
