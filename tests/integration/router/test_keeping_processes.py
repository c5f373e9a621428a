"""A router's processes: started again when they end, ended together, given up where none could start."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from router.processes import Processes, ProcessRules
from stoker_common.backoff import Backoff
from tests.fakes.until import until

# Says that it listens, and lives until it is told to end.
WELL = "import os, signal; os.write({fd}, b'{{\"metrics_port\": 1}}\\n'); signal.pause()"


def processes(program: Callable[[int], str], count: int = 2, drain_s: float = 5.0) -> Processes:
    def command(number: int, descriptor: int) -> Sequence[str]:
        return [sys.executable, "-I", "-S", "-c", program(number).format(fd=descriptor)]

    rules = ProcessRules(drain_s=drain_s, end_s=0.0)
    return Processes(count, command, {}, rules, lambda: Backoff(random.Random(1), 0.01, 0.1), time.monotonic)


async def test_all_are_started_and_one_that_ends_is_started_again_alone() -> None:
    group, listening = processes(lambda number: WELL), asyncio.Event()
    running = asyncio.create_task(group.run(listening))
    await until(lambda: sum(process.listens for process in group.running) == 2, 20)
    assert listening.is_set()
    first, second = sorted(group.running, key=lambda process: process.number)
    ended: list[int] = []
    group.on_end = ended.append
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: group.restarts == 1 and sum(process.listens for process in group.running) == 2, 20)
    assert second in group.running
    assert ended == [first.pid]
    group.stop()
    assert await asyncio.wait_for(running, 20) == 0
    assert group.running == ()


async def test_where_none_could_start_its_status_is_told_and_nothing_is_tried_again() -> None:
    group = processes(lambda number: "raise SystemExit(3)")
    assert await asyncio.wait_for(group.run(asyncio.Event()), 20) == 3
    assert group.restarts == 0


async def test_one_that_fails_at_first_is_tried_again_where_another_works(tmp_path: Path) -> None:
    """The second waits until the first works, and fails once."""
    flag, failed = tmp_path / "works", tmp_path / "failed"
    second = (
        f"import os, time\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.01)\n"
        f"if not os.path.exists({str(failed)!r}): open({str(failed)!r}, 'w').close(); raise SystemExit(1)\n" + WELL
    )
    group, listening = processes(lambda number: WELL if number == 1 else second), asyncio.Event()
    running = asyncio.create_task(group.run(listening))
    await asyncio.wait_for(listening.wait(), 20)
    flag.touch()
    await until(lambda: sum(process.listens for process in group.running) == 2, 20)
    assert group.restarts == 1
    group.stop()
    assert await asyncio.wait_for(running, 20) == 0


async def test_what_does_not_end_in_its_time_is_killed() -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WELL + "\nwhile True: signal.pause()"
    group, listening = processes(lambda number: deaf, count=1, drain_s=0.1), asyncio.Event()
    running = asyncio.create_task(group.run(listening))
    await asyncio.wait_for(listening.wait(), 20)
    group.stop()
    assert await asyncio.wait_for(running, 20) == 0
