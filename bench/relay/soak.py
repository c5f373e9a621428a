"""What streams leave behind in a router, and what a client that never reads does to the others."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from statistics import median

import grpc.aio
import psutil

from bench.relay import measure
from bench.relay.load import Seen, quantile
from bench.relay.measure import Figures, Window
from bench.relay.script import MODEL, PACED, UNPACED
from bench.relay.systems import System
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common.channel import client_options

AT_ONCE = 64
# What an allocator, caches and pools have settled on after so many is what later streams are held against.
WARM = 2_000
NOISE_STREAMS = 64
SLOW_ROUNDS = 8
# By then what a client that never reads is sent until nothing more fits is over: a burst like any fast stream's.
SLOW_SETTLE_S = 1.2


async def leftovers(system: System, streams: int) -> Figures:
    """Memory and descriptors before and after `streams` streams: half run to their end, half are left in the middle."""
    router = psutil.Process(system.pids[0])
    await _many(system, WARM)
    before_mib, before_fds, before_threads = await _settled(router)
    began_s = time.monotonic()
    await _many(system, streams)
    took_s = time.monotonic() - began_s
    after_mib, after_fds, after_threads = await _settled(router)
    return {
        "streams": streams,
        "streams_per_s": streams / took_s,
        "rss_before_mib": before_mib,
        "rss_after_mib": after_mib,
        "rss_ratio": after_mib / before_mib,
        "descriptors_more": after_fds - before_fds,
        "threads_more": after_threads - before_threads,
    }


async def _many(system: System, streams: int) -> None:
    load, seen = system.load(AT_ONCE), Seen()
    numbers = iter(range(streams))

    async def worker() -> None:
        for i in numbers:
            if i % 2:
                await load.stream(i, UNPACED, 8, seen, lambda: None)
                continue
            begun = asyncio.Event()
            task = asyncio.ensure_future(load.stream(i, PACED, 1000, seen, begun.set))
            await begun.wait()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(worker())
    finally:
        await load.close()


async def _settled(process: psutil.Process) -> tuple[float, int, int]:
    """MiB of memory, descriptors, threads, once connections are closed and two looks a second apart agree."""
    fds = -1
    for _ in range(10):
        await asyncio.sleep(1.0)
        if process.num_fds() == fds:
            break
        fds = process.num_fds()
    return process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()


async def slow_reader(system: System, window: Window) -> Figures:
    """ITL of paced streams beside a client that asks for a long answer and never reads it, and without it.

    The streams run on while that client comes and goes, `SLOW_ROUNDS` times: both states meet the same machine.
    """
    load, seen = system.load(NOISE_STREAMS), Seen()
    without, beside, ratios = list[float](), list[float](), list[float]()
    began = 0

    def begun() -> None:
        nonlocal began
        began += 1

    async def gaps() -> list[float]:
        await asyncio.sleep(SLOW_SETTLE_S)
        seen.forget()
        await asyncio.sleep(window.window_s)
        return list(seen.gaps_ms)

    tasks = [asyncio.ensure_future(load.stream(i, PACED, 1 << 20, seen, begun)) for i in range(NOISE_STREAMS)]
    try:
        async with asyncio.timeout(measure.BEGIN_WITHIN_S):
            while began < NOISE_STREAMS:  # noqa: ASYNC110 - told one by one
                await asyncio.sleep(0.05)
        for _ in range(SLOW_ROUNDS):
            free = await gaps()
            async with _never_reads(system):
                slow = await gaps()
            without += free
            beside += slow
            ratios.append(quantile(slow, 0.99) / quantile(free, 0.99))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await load.close()
    return {
        "rounds": SLOW_ROUNDS,
        "itl_p99_ms": quantile(without, 0.99),
        "itl_p99_beside_ms": quantile(beside, 0.99),
        "itl_p50_ms": quantile(without, 0.5),
        "itl_p50_beside_ms": quantile(beside, 0.5),
        # Of each round's own ratio: a round that met another program's burst is one round.
        "ratio": median(ratios),
        "ratio_p25": quantile(ratios, 0.25),
        "ratio_p75": quantile(ratios, 0.75),
    }


@contextlib.asynccontextmanager
async def _never_reads(system: System) -> AsyncIterator[None]:
    """An answer of 130 KB of which no part is read: flow control lets half through, the router keeps the rest."""
    async with grpc.aio.insecure_channel(system.address, options=client_options()) as channel:
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            "/stoker.v1.InferenceService/GenerateStream"
        )
        sampling = generation_pb2.Sampling(max_tokens=3_000, ignore_eos=True)
        generation = generation_pb2.Generation(model=MODEL, text=UNPACED, sampling=sampling)
        call = method(inference_pb2.GenerateStreamRequest(generation=generation).SerializeToString())
        try:
            yield
        finally:
            call.cancel()
