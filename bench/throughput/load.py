"""The load generator: several processes that stream at once, and what they and the processes of a mesh used for it."""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bench.relay.cpu import used_s
from bench.relay.load import quantile
from bench.relay.systems import ROOT
from bench.throughput.job import Done, Job, Span

_READY_WITHIN_S = 60.0
_DONE_WITHIN_S = 240.0
# All streams run by then: what is counted is steady.
SETTLE_S = 1.0
_STARTS_IN_S = 0.1

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Watched:
    """A process whose CPU is told, and whether its children's are counted with it."""

    pid: int
    children: bool = False

    def used_s(self) -> float:
        """Seconds of CPU so far."""
        return used_s([self.pid], children=self.children)


async def measure(
    job: Job,
    processes: int,
    window_s: float | None,
    watched: Mapping[str, Watched],
    look: Callable[[], Row] = dict,
) -> Row:
    """`job.streams` over so many processes: tokens/s, CPU of who is watched, how busy the load generator was.

    `look` is asked for more when all streams run. Without a window each stream runs once, and time counts from the
    start to the last token. Raises RuntimeError.
    """
    share = job.streams // processes
    jobs = [replace(job, streams=share, seed=job.seed + 2 * number) for number in range(processes)]
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(_started(each)) for each in jobs]
    clients = [task.result() for task in started]
    try:
        async with asyncio.timeout(_READY_WITHIN_S):
            for client in clients:
                await _said(client)
        from_s = time.monotonic() + (_STARTS_IN_S if window_s is None else SETTLE_S)
        span = Span(from_s, None if window_s is None else from_s + window_s)
        for client in clients:
            assert client.stdin is not None
            client.stdin.write(f"{span.line()}\n".encode())
        told = [asyncio.ensure_future(_said(client)) for client in clients]
        await asyncio.sleep(from_s - time.monotonic())
        before = {name: each.used_s() for name, each in watched.items()}
        seen = look()
        async with asyncio.timeout(_DONE_WITHIN_S):
            # Either way the span's end, as near as may be: what is used after it is not counted.
            await (asyncio.wait(told) if window_s is None else asyncio.sleep(from_s + window_s - time.monotonic()))
            cpu_s = {name: each.used_s() - before[name] for name, each in watched.items()}
            done = [Done.parse(await each) for each in told]
    finally:
        for client in clients:
            if client.returncode is None:
                client.kill()
            await client.wait()
    took_s = window_s or max(each.last_s for each in done) - from_s
    tokens = sum(each.tokens for each in done)
    ttft_ms = [each for one in done for each in one.ttft_ms]
    return {
        "streams": job.streams,
        "channels": sum(each.streams // each.streams_per_channel for each in jobs) if job.way == "calls" else processes,
        "tokens": tokens,
        "took_s": round(took_s, 3),
        "tokens_per_s": round(tokens / took_s, 1),
        "ttft_p50_ms": round(quantile(ttft_ms, 0.5), 1),
        "ttft_p99_ms": round(quantile(ttft_ms, 0.99), 1),
        "load_processes": processes,
        "load_cores_most": round(max(each.cores for each in done), 2),
        "load_lag_p99_ms": round(max(each.lag_p99_ms for each in done), 2),
        **seen,
        **{f"{name}_us_per_token": round(used * 1e6 / max(1, tokens), 2) for name, used in cpu_s.items()},
        **{f"{name}_cores": round(used / took_s, 2) for name, used in cpu_s.items()},
    }


async def _started(job: Job) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.throughput.client", job.line()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
        limit=1 << 20,
    )


async def _said(client: asyncio.subprocess.Process) -> str:
    assert client.stdout is not None
    line = await client.stdout.readline()
    if not line:
        raise RuntimeError("a process of the load generator failed: its message is above")
    return line.decode()
