"""A short set for CI: one trial each of the most telling faults, 40 streams, in less than four minutes. `make chaos`.

A server dies, freezes, is cut off, a connection loses a stream, Consul lies, a router dies, more is asked than there is
room for, and every server is restarted in turn. The long set is `make chaos-long`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.fault import Fault
from tests.chaos.faults import BY_NUMBER
from tests.chaos.mesh import ChaosMesh, MeshPlan, running
from tests.chaos.places import why_no_namespaces
from tests.chaos.script import Load
from tests.chaos.trial import run

pytestmark = pytest.mark.timeout(180)

STREAMS = 40
SHORT = ("1", "2", "9", "10", "20", "24", "26", "7-all")
# Streams that outlast the restart of four servers.
ROLL = Load(shortest_tokens=130, longest_tokens=180, deadline_s=90.0)
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
    if fault.number == "7-all":
        fault = replace(fault, load=ROLL)
    result = run(mesh, fault, f"ci-{fault.number}", STREAMS, tmp_path)
    assert result.ok, f"{result.did}: {result.wrong} {result.broken}"
