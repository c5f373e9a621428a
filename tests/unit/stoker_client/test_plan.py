"""What a mesh consists of."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from stoker_client.mesh.config import MOST_SERVERS, MeshSettings
from stoker_client.mesh.plan import MeshPlan, plan
from stoker_client.mesh.state import Kind

pytestmark = pytest.mark.unit

CONSUL = Path("/opt/consul")


def planned(settings: MeshSettings, model: str = "") -> MeshPlan:
    return plan(settings, model, CONSUL)


def test_two_zones() -> None:
    mesh = planned(MeshSettings(engine="sim"))
    assert [process.name for process in mesh.processes] == [
        "consul-zone-a",
        "consul-zone-b",
        "server-zone-a-1",
        "server-zone-b-1",
        "router-zone-a",
        "router-zone-b",
    ]
    assert [process.address for process in mesh.processes if process.kind is Kind.ROUTER] == [
        "127.0.0.1:7070",
        "127.0.0.1:7170",
    ]


@pytest.mark.parametrize("consul_servers", [1, 3])
def test_the_largest_mesh_has_no_port_twice(consul_servers: int) -> None:
    mesh = planned(MeshSettings(zones=8, servers_per_zone=MOST_SERVERS, consul_servers=consul_servers))
    numbers = [port.number for port in mesh.ports]
    assert len(numbers) == len(set(numbers))
    assert max(numbers) < 65536
    names = [process.name for process in mesh.processes]
    assert len(names) == len(set(names))


def test_everyone_talks_to_the_consul_of_his_zone() -> None:
    mesh = planned(MeshSettings(consul_servers=3, servers_per_zone=4))
    consul = {zone: {p.address for p in mesh.processes if p.kind is Kind.CONSUL and p.zone == zone}
              for zone in ("zone-a", "zone-b")}  # fmt: skip
    used = {zone: set[str]() for zone in consul}
    for process in mesh.processes:
        if process.kind is not Kind.CONSUL:
            address = process.argv[process.argv.index("--consul-address") + 1]
            assert address in consul[process.zone]
            used[process.zone].add(address)
    assert used == consul


def test_a_router_may_have_several_processes() -> None:
    mesh = planned(MeshSettings(engine="sim", router_processes=3))
    argv = [process.argv for process in mesh.processes if process.kind is Kind.ROUTER]
    assert [each[each.index("--processes") + 1] for each in argv] == ["3", "3"]


def test_the_model_goes_to_the_servers_alone() -> None:
    mesh = planned(MeshSettings(), "/models/m")
    assert all(("/models/m" in process.argv) == (process.kind is Kind.SERVER) for process in mesh.processes)
    assert "--model" not in planned(MeshSettings(engine="sim")).processes[2].argv


def test_every_server_has_the_adapters_and_no_other_process() -> None:
    given = ("tone=/adapters/tone", "law=/adapters/law:code@1")
    for process in planned(MeshSettings(engine="sim", adapters=given)).processes:
        assert (",".join(given) in process.argv) == (process.kind is Kind.SERVER)


@pytest.mark.parametrize("given", ["/adapters/tone", "=/adapters/tone", "tone="])
def test_an_adapter_without_a_name_or_a_place_is_refused_before_anything_starts(given: str) -> None:
    with pytest.raises(ValidationError, match="write NAME=PATH"):
        MeshSettings(adapters=(given,))
