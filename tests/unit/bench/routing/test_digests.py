import pytest

from bench.routing.mesh import Mesh
from bench.routing.speeds import Speeds
from bench.routing.stoker import EPOCH, StokerProcess
from bench.routing.workloads import WORKLOADS, Setting

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("routers", [1, 3])
def test_what_routers_believe_to_be_cached_is_what_is_once_all_is_told(routers: int) -> None:
    """By the router's own index; the caches are so small that most of what comes goes again."""
    processes: list[StokerProcess] = []

    def make(mesh: Mesh, place: int) -> StokerProcess:
        processes.append(StokerProcess(mesh, place))
        return processes[-1]

    workload = WORKLOADS["agents"](Setting(Speeds(kv_tokens=70_000), load=24.0, seconds=20.0))
    mesh = Mesh(workload, make, routers, seed=1)
    mesh.run()
    for name, server in mesh.servers.items():
        news = server.digest()
        for process in processes:
            process.reported(name, server.load(), news)
    evicted = sum(server.engine("model").kv.evictions for server in mesh.servers.values())
    assert evicted > 1000
    for process in processes:
        index = process.learned.caches.index
        for job in workload.jobs:
            depths = index.depths(job.chain)
            for name, server in mesh.servers.items():
                assert depths.get((name, EPOCH)) == server.engine("model").kv.match(job.chain)
