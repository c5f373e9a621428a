from collections import Counter
from dataclasses import replace

import pytest

from bench.routing.figures import Figures, figures
from bench.routing.job import Flight, Job
from bench.routing.mesh import Mesh, Run
from bench.routing.policies import POLICIES, policy
from bench.routing.speeds import Speeds
from bench.routing.workload import Workload, fleet
from bench.routing.workloads import OF_A_FILE, WORKLOADS, Setting

SHORT = Setting(Speeds(), load=15.0, seconds=5.0)
# Stoker on every workload that is made up, the baselines where servers are lost.
RUNS = [(name, "stoker") for name in WORKLOADS if name not in OF_A_FILE]
RUNS += [("zone-lost", name) for name in POLICIES if name != "stoker"]


def ran(name: str, of: str, routers: int = 1, seed: int = 1) -> tuple[Workload, Run]:
    workload = WORKLOADS[name](SHORT)
    return workload, Mesh(workload, policy(of), routers, seed).run()


@pytest.mark.parametrize(("name", "of"), RUNS)
def test_every_request_ends_once(name: str, of: str) -> None:
    workload, run = ran(name, of, routers=3)
    assert [flight.job for flight in run.flights] == list(workload.jobs)
    for flight in run.flights:
        assert flight.rejected != (flight.last_s is not None)
        if flight.last_s is not None:
            assert flight.first_s is not None
            assert flight.job.arrival_s < flight.first_s <= flight.last_s
            assert 0 <= flight.cached_tokens < flight.job.prompt_tokens
    for server in run.servers:
        if server.alive:
            assert server.streams == 0
            assert all(engine.kv.used == 0 for engine in server.engines.values())


@pytest.mark.parametrize("of", POLICIES)
def test_the_seed_decides(of: str) -> None:
    def once(seed: int) -> Figures:
        return figures(*ran("sessions", of, 2, seed))

    assert once(1) == once(1)
    assert once(1) != once(2)


def test_a_lost_zones_requests_go_on_in_the_other() -> None:
    workload, run = ran("zone-lost", "stoker")
    assert workload.loss is not None
    moved = [flight for flight in run.flights if flight.attempts > 1]
    assert moved
    assert all(flight.server.startswith("a-") for flight in moved)
    late = [flight for flight in run.flights if flight.job.arrival_s > workload.loss.at_s + 2.1]
    assert all(flight.attempts == 1 for flight in late)


def test_figures() -> None:
    jobs = [Job(i, float(i), 1000, 11, (), session="s") for i in range(4)]
    flights = [Flight(job, server="a-0", first_s=job.arrival_s + 1.0, last_s=job.arrival_s + 1.2) for job in jobs]
    flights[1].first_s = 1.0 + 2.5  # too late
    flights[1].last_s = 3.7
    flights[2].last_s = 4.0  # too slow
    flights[2].server = "a-1"
    flights[3] = replace(flights[3], first_s=None, last_s=None, rejected=True)
    flights[0].cached_tokens = 512
    found = figures(Workload("w", jobs, fleet(Speeds())), Run(flights, [], [[4, 0], [1, 0], [2, 2]]))
    assert (found.good, found.requests, found.rejected, found.moved) == (1, 4, 1, 2)
    assert found.seconds == pytest.approx(3.0)
    assert found.cached_share == pytest.approx(512 / 3000)
    assert found.imbalance == pytest.approx(1.5)
    assert not found.within_slo


def test_the_ideal_cache() -> None:
    jobs = [Job(0, 0, 1100, 1, (1, 2)), Job(1, 1, 1100, 1, (1, 2)), Job(2, 2, 1100, 1, (1, 3))]
    assert Workload("w", jobs, fleet(Speeds())).ideal_cached_share == pytest.approx((1024 + 512) / 3300)


def at_once(routers: int) -> tuple[Mesh, Run]:
    """Sixteen prompts of one moment, equally long, that have nothing in common."""
    before = [Job(number, number * 0.3, 2000, 50, ()) for number in range(64)]
    clump = [Job(64 + number, 30.0, 10_000, 50, ()) for number in range(16)]
    mesh = Mesh(Workload("at once", before + clump, fleet(Speeds())), policy("stoker"), routers, seed=1)
    return mesh, mesh.run()


def test_of_several_routers_each_learns_at_once_that_others_picked_the_same_server() -> None:
    mesh, run = at_once(routers=8)
    taken = Counter(flight.server for flight in run.flights if flight.job.number >= 64)
    assert mesh.outbid > 0
    assert max(taken.values()) <= 3


def test_one_router_is_never_outbid() -> None:
    mesh, _ = at_once(routers=1)
    assert mesh.outbid == 0
