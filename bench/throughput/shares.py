"""How the connections to one port are spread over the processes that share it."""

from collections.abc import Sequence

import psutil

from bench.throughput.load import Row


def processes(pid: int) -> list[int]:
    """Those that serve: the children of a router of several processes, else the router itself."""
    children = [child.pid for child in psutil.Process(pid).children()]
    return children or [pid]


def row(pids: Sequence[int], port: int) -> Row:
    """Connections to `port` of the process that has fewest, and of the one that has most."""
    counts = [connections(pid, port) for pid in pids]
    return {"process_channels_least": min(counts), "process_channels_most": max(counts)}


def connections(pid: int, port: int) -> int:
    """How many connections to its `port` a process has taken."""
    return sum(
        bool(each.laddr) and each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED
        for each in psutil.Process(pid).net_connections(kind="tcp")
    )
