"""A short set for CI: one trial each of a few faults, 40 streams. `make chaos`; the long one is `make chaos-long`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.faults import BY_NUMBER, Fault
from tests.chaos.mesh import ChaosMesh, MeshPlan, running
from tests.chaos.places import why_no_namespaces
from tests.chaos.trial import run

pytestmark = pytest.mark.timeout(180)

STREAMS = 40
SHORT = ("1", "2", "10", "20", "24", "27")
PLAN = MeshPlan(servers_per_zone=2, consul_servers=(1, 1))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosMesh]:
    """One mesh for all: coming back after each fault is part of the trial."""
    with running(PLAN, tmp_path_factory.mktemp("chaos"), namespaces=not why_no_namespaces()) as up:
        yield up


@pytest.mark.parametrize("fault", [BY_NUMBER[number] for number in SHORT], ids=lambda fault: fault.name)
def test_no_stream_notices(mesh: ChaosMesh, fault: Fault, tmp_path: Path) -> None:
    if fault.namespaces and not mesh.namespaces:
        pytest.skip(f"needs network namespaces: {why_no_namespaces()}")
    result = run(mesh, fault, f"ci-{fault.number}", STREAMS, tmp_path)
    assert result.ok, f"{result.did}: {result.wrong} {result.broken}"
