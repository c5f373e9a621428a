"""Metrics of several processes as those of one: sums, whose gauge it is, and sums that never fall."""

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from router.process_metrics import ProcessesCollector
from router.processes import Process, Processes, ProcessRules
from stoker_common import metrics
from stoker_common.backoff import Backoff


def no_backoff() -> Backoff:
    raise AssertionError("nothing is started here")


class World:
    """Processes that show what they are told to, and the collector that asks them."""

    def __init__(self, folder: Path, held: ExitStack) -> None:
        self._held = held
        self.folder = folder
        self.processes = Processes(2, lambda number, descriptor: [], {}, ProcessRules(1.0), no_backoff, float)
        self.registry = CollectorRegistry()
        self.registry.register(ProcessesCollector(folder, self.processes))

    def lives(self, number: int, pid: int, ejections: float, queue: float) -> Process:
        """A process that has counted some ejections and has a queue."""
        registry = CollectorRegistry()
        Counter("stoker_router_ejections", "E.", ("zone",), registry=registry).labels("a").inc(ejections)
        Gauge("stoker_router_queue_length", "Q.", ("model",), registry=registry).labels("m").set(queue)
        server = metrics.serve(registry, "127.0.0.1", 0)
        self._held.callback(server.close)
        process = Process(number, pid, server.port, listens=True)
        self.processes.running = (*self.processes.running, process)
        return process

    def ends(self, process: Process) -> None:
        """It is gone."""
        self.processes.running = tuple(each for each in self.processes.running if each is not process)
        self.processes.on_end(process.pid)

    def counted(self, pid: int, value: float) -> None:
        """What a process has counted itself, in its file."""
        file = MmapedDict(str(self.folder / f"counter_{pid}.db"))  # type: ignore[no-untyped-call]
        key = mmap_key("stoker_router_requests", "stoker_router_requests_total", ["zone"], ["a"], "R.")
        file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
        file.close()  # type: ignore[no-untyped-call]

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as held:
        yield World(tmp_path, held)


def test_what_processes_count_themselves_is_summed_also_of_those_that_are_gone(world: World) -> None:
    first = world.lives(1, 101, 0, 0)
    world.counted(101, 5)
    world.counted(102, 7)
    assert world.value("stoker_router_requests_total", zone="a") == 12
    world.ends(first)
    assert world.value("stoker_router_requests_total", zone="a") == 12


def test_gauges_say_whose_they_are(world: World) -> None:
    world.lives(1, 101, 0, 3)
    world.lives(2, 102, 0, 4)
    assert world.value("stoker_router_queue_length", model="m", process="1") == 3
    assert world.value("stoker_router_queue_length", model="m", process="2") == 4


def test_a_sum_never_falls_when_a_process_ends_and_another_begins(world: World) -> None:
    first = world.lives(1, 101, 6, 0)
    world.lives(2, 102, 1, 0)
    assert world.value("stoker_router_ejections_total", zone="a") == 7
    world.ends(first)
    assert world.value("stoker_router_ejections_total", zone="a") == 7
    world.lives(1, 103, 2, 0)
    assert world.value("stoker_router_ejections_total", zone="a") == 9


def test_a_process_that_does_not_answer_is_missing_from_one_scrape(world: World) -> None:
    first = world.lives(1, 101, 6, 1)
    assert world.value("stoker_router_ejections_total", zone="a") == 6
    first.metrics_port = 1  # nobody listens there
    assert world.value("stoker_router_ejections_total", zone="a") == 6
    assert world.value("stoker_router_queue_length", model="m", process="1") is None
    assert world.value("stoker_router_processes") == 1


def test_a_file_that_has_just_been_made_is_no_error(world: World) -> None:
    (world.folder / "counter_104.db").touch()
    (world.folder / "counter_105.db").write_bytes(struct.pack("i", 0) + b"\0" * 4)
    assert world.value("stoker_router_processes") == 0
