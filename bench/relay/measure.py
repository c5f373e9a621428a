"""One window of one system under one load: tokens, messages, CPU, delays, and the load generator's own lag."""

import asyncio
import os
import time
from collections.abc import Awaitable
from dataclasses import dataclass

from bench.relay.cpu import used_s
from bench.relay.load import Lag, Seen, quantile
from bench.relay.script import PACED, STEP_MS, UNPACED
from bench.relay.systems import System

BEGIN_WITHIN_S = 30.0
# Streams that are as fast as it goes end and are begun again: an answer of usual length.
UNPACED_TOKENS = 512

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Window:
    """How long is measured, in s, after how long a time in which all streams run."""

    settle_s: float = 0.5
    window_s: float = 1.5


class _Costs:
    """CPU of the system and of this process, and this loop's lag, since it was made."""

    def __init__(self, system: System, lag: Lag) -> None:
        self._system = system
        self._lag = lag
        lag.late_ms.clear()
        self._began_s = time.monotonic()
        self._cpu_s, self._own_s = used_s(system.pids), used_s([os.getpid()])

    def figures(self, units: int, unit: str) -> Figures:
        """For each of `units` things done."""
        took_s = time.monotonic() - self._began_s
        cpu_s, own_s = used_s(self._system.pids) - self._cpu_s, used_s([os.getpid()]) - self._own_s
        return {
            f"{unit}s_per_s": units / took_s,
            f"cpu_us_per_{unit}": cpu_s / max(1, units) * 1e6,
            "cpu_share": cpu_s / took_s,
            "load_cpu_share": own_s / took_s,
            "load_lag_p99_ms": quantile(self._lag.late_ms, 0.99),
            "load_lag_max_ms": max(self._lag.late_ms, default=0.0),
        }


async def streams(system: System, count: int, how: str, window: Window) -> Figures:
    """`count` streams at once, paced or as fast as it goes."""
    load, seen, lag = system.load(count), Seen(), Lag()
    running = 0
    all_run = asyncio.Event()

    def began() -> None:
        nonlocal running
        running += 1
        if running == count:
            all_run.set()

    async def one(i: int) -> None:
        if how == PACED:
            await load.stream(i, how, 1 << 20, seen, began)
        while how == UNPACED:
            await load.stream(i, how, UNPACED_TOKENS, seen, began)

    lagging = asyncio.ensure_future(lag.run())
    tasks = [asyncio.ensure_future(one(i)) for i in range(count)]
    try:
        await _or_failure(asyncio.wait_for(all_run.wait(), BEGIN_WITHIN_S), tasks)
        await _or_failure(asyncio.sleep(window.settle_s), tasks)
        seen.forget()
        costs = _Costs(system, lag)
        await _or_failure(asyncio.sleep(window.window_s), tasks)
        figures = costs.figures(seen.tokens, "token")
    finally:
        for task in [lagging, *tasks]:
            task.cancel()
        await asyncio.gather(lagging, *tasks, return_exceptions=True)
        await load.close()
    if seen.messages:
        figures["messages_per_token"] = seen.messages / max(1, seen.tokens)
    if how == PACED:
        figures["of_offered"] = figures["tokens_per_s"] / (count * 1000 / STEP_MS)
        for name, values in (("delay", seen.delays_ms), ("itl", seen.gaps_ms)):
            if not values:
                continue
            figures |= {f"{name}_p50_ms": quantile(values, 0.5), f"{name}_p99_ms": quantile(values, 0.99)}
    return figures


async def short_streams(system: System, count: int, tokens: int, window: Window) -> Figures:
    """Paced streams of so many tokens, `count` at a time, begun evenly one after the other; for each that ended.

    Measured over as long as one takes: as many begin in it as end.
    """
    load, seen, lag = system.load(count), Seen(), Lag()
    lasts_s = tokens * STEP_MS / 1e3
    ended = 0

    async def one(i: int) -> None:
        nonlocal ended
        await asyncio.sleep(lasts_s * i / count)
        while True:
            await load.stream(i, PACED, tokens, seen, lambda: None)
            ended += 1

    lagging = asyncio.ensure_future(lag.run())
    tasks = [asyncio.ensure_future(one(i)) for i in range(count)]
    try:
        await _or_failure(asyncio.sleep(lasts_s + window.settle_s), tasks)
        ended, costs = 0, _Costs(system, lag)
        await _or_failure(asyncio.sleep(max(lasts_s, window.window_s)), tasks)
        return costs.figures(ended, "stream")
    finally:
        for task in [lagging, *tasks]:
            task.cancel()
        await asyncio.gather(lagging, *tasks, return_exceptions=True)
        await load.close()


async def first_token(system: System, window: Window) -> Figures:
    """One stream at a time: the time to its first token, in ms."""
    load, lag, times_ms = system.load(), Lag(), list[float]()
    try:
        end_s = time.monotonic() + window.window_s
        while time.monotonic() < end_s:
            began_s = time.monotonic()
            await load.stream(1, UNPACED, 1, Seen(), lambda: None)
            times_ms.append((time.monotonic() - began_s) * 1e3)
    finally:
        await load.close()
    del lag
    return {"stream_p50_ms": quantile(times_ms, 0.5), "stream_p99_ms": quantile(times_ms, 0.99)}


async def unary_alone(system: System, window: Window) -> Figures:
    """Unary requests, one at a time."""
    load, lag, times_ms = system.load(), Lag(), list[float]()
    lagging = asyncio.ensure_future(lag.run())
    try:
        for _ in range(20):
            await load.unary()
        costs = _Costs(system, lag)
        end_s = time.monotonic() + window.window_s
        while time.monotonic() < end_s:
            began_s = time.monotonic()
            await load.unary()
            times_ms.append((time.monotonic() - began_s) * 1e3)
        figures = costs.figures(len(times_ms), "request")
    finally:
        lagging.cancel()
        await load.close()
    return {**figures, "p50_ms": quantile(times_ms, 0.5), "p99_ms": quantile(times_ms, 0.99)}


async def unary_open(system: System, rate_per_s: float, window: Window) -> Figures:
    """Unary requests at a fixed rate, whether the system keeps up or not. Times count from when each was due."""
    load_count = 8
    loads = [system.load() for _ in range(load_count)]
    free: asyncio.Queue[int] = asyncio.Queue()
    for i in range(load_count):
        free.put_nowait(i)
    lag, times_ms, late_ms = Lag(), list[float](), list[float]()
    lagging = asyncio.ensure_future(lag.run())

    async def one(due_s: float) -> None:
        i = await free.get()
        try:
            await loads[i].unary()
        finally:
            free.put_nowait(i)
        times_ms.append((time.monotonic() - due_s) * 1e3)

    try:
        for load in loads:
            await load.unary()
        costs = _Costs(system, lag)
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for n in range(int(rate_per_s * window.window_s)):
                due_s = began_s + n / rate_per_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                late_ms.append((time.monotonic() - due_s) * 1e3)
                tasks.create_task(one(due_s))
        figures = costs.figures(len(times_ms), "request")
    finally:
        lagging.cancel()
        for load in loads:
            await load.close()
    return {
        **figures,
        "p50_ms": quantile(times_ms, 0.5),
        "p99_ms": quantile(times_ms, 0.99),
        "sent_late_p99_ms": quantile(late_ms, 0.99),
    }


async def _or_failure(wanted: Awaitable[object], tasks: "list[asyncio.Task[None]]") -> None:
    """Wait for what is wanted, or raise what broke a stream."""
    waiting = asyncio.ensure_future(wanted)
    await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        waiting.cancel()
        for task in tasks:
            if task.done():
                raise task.exception() or RuntimeError("a stream ended early")
    await waiting
