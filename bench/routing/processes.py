"""Runs what is asked in several processes, and gives each result as it ends."""

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import get_context

from bench.routing.highest import Highest, highest
from bench.routing.suite import Asked, Cell, Result, cells, run
from bench.routing.workloads import Setting

Found = Highest | Result
_Job = Callable[[], Found]


def found(
    names: Iterable[str], setting: Setting, asked: Asked, processes: int, done: Container[Cell] = ()
) -> Iterator[Found]:
    """The results, in the order in which they end, less those of the cells that are done; and what highest loads were
    looked for, with the setting's seed, because they were not known. A run depends on nothing but its cell and the
    setting, so that the figures are the same with any number of processes."""
    todo: deque[_Job] = deque()

    def at(name: str, load: float) -> None:
        todo.extend(partial(run, cell, setting) for cell in cells(name, asked, load) if cell not in done)

    for name in names:
        if name in asked.highest:
            at(name, asked.highest[name])
        else:
            # First: it takes longest, and what it finds is to be run.
            todo.appendleft(partial(highest, name, setting))
    for each in _ended(todo, processes):
        if isinstance(each, Highest):
            at(each.workload, each.load)
        yield each


def _ended(todo: deque[_Job], processes: int) -> Iterator[Found]:
    """What comes of each, also of those that are added meanwhile."""
    if processes == 1:
        while todo:
            yield todo.popleft()()
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        running: set[Future[Found]] = set()
        try:
            while todo or running:
                _begin(todo, running, pool, processes)
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for each in ended:
                    yield each.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(todo: deque[_Job], running: set[Future[Found]], pool: Executor, most: int) -> None:
    while todo and len(running) < most:
        running.add(pool.submit(todo.popleft()))
