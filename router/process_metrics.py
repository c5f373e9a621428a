"""The metrics of a router's processes as those of one router.

What is counted request by request is summed from files that all processes write as they count (prometheus_client's
multi-process mode): nothing is lost with a process that is killed. What a process knows only when asked, of servers and
queues, it is asked for: counters are summed, and gauges, which may differ from process to process, say which one they
are of.
"""

import logging
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from router.processes import Process, Processes

log = logging.getLogger(__name__)

# On this host; a process that does not answer in that time is busy, and missing from one scrape.
ASK_WITHIN_S = 1.0

# A counter's value by name, and its labels.
Labels = tuple[tuple[str, str], ...]
Counts = dict[tuple[str, Labels], float]


class ProcessesCollector(Collector):
    """Read when Prometheus asks, in the exporter's thread."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self._folder = folder
        self._processes = processes
        # What the processes that are gone had counted when they were last asked: a sum never falls.
        self._last: dict[int, Counts] = {}
        self._gone: Counts = defaultdict(float)
        processes.on_end = self._ended

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        # One that has just been made is empty for a moment, which its reader does not expect.
        files = [str(file) for file in self._folder.glob("*.db") if _size(file)]
        counted = list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]
        yield from counted
        running = self._processes.running
        yield from self._asked(running, {metric.name for metric in counted})
        up = GaugeMetricFamily("stoker_router_processes", "The router's processes that serve.")
        up.add_metric([], sum(process.listens for process in running))
        restarts = CounterMetricFamily("stoker_router_process_restarts", "Processes that ended and were started again.")
        restarts.add_metric([], self._processes.restarts)
        yield from (up, restarts)

    def _asked(self, running: Iterable[Process], counted: set[str]) -> Iterator[Metric]:
        gauges: dict[str, Metric] = {}
        counters: dict[str, Metric] = {}
        alive: set[int] = set()
        for process in running:
            alive.add(process.pid)
            families = _ask(process) if process.metrics_port > 0 else []
            counts: Counts = {}
            for family in families:
                if family.name in counted:
                    continue
                if family.type == "gauge":
                    gauge = gauges.setdefault(family.name, Metric(family.name, family.documentation, "gauge"))
                    for sample in family.samples:
                        gauge.add_sample(sample.name, {**sample.labels, "process": str(process.number)}, sample.value)
                elif family.type == "counter":
                    counters.setdefault(family.name, Metric(family.name, family.documentation, "counter"))
                    counts |= {
                        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                        for sample in family.samples
                        if sample.name.endswith("_total")
                    }
            if families:
                self._last[process.pid] = counts
        for pid in self._last.keys() - alive:
            _add(self._gone, self._last.pop(pid))
        sums: Counts = defaultdict(float, self._gone)
        for counts in self._last.values():
            _add(sums, counts)
        for (name, labels), value in sums.items():
            family_name = name.removesuffix("_total")
            metric = counters.setdefault(family_name, Metric(family_name, "Of processes that have ended.", "counter"))
            metric.add_sample(name, dict(labels), value)
        yield from gauges.values()
        yield from counters.values()

    def _ended(self, pid: int) -> None:
        """What it had in flight is no more; what it counted stays."""
        mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0  # a gauge of a process that has just ended


def _add(to: Counts, counts: Mapping[tuple[str, Labels], float]) -> None:
    for key, value in counts.items():
        to[key] = to.get(key, 0.0) + value


def _ask(process: Process) -> list[Metric]:
    """What the process shows; nothing if it does not answer."""
    url = f"http://127.0.0.1:{process.metrics_port}/metrics"
    try:
        # A proxy named in the environment is for the web.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=ASK_WITHIN_S) as response:
            return list(text_string_to_metric_families(response.read().decode()))
    except (OSError, urllib.error.URLError) as error:
        log.warning("router process does not show its metrics", extra={"number": process.number, "why": str(error)})
        return []
