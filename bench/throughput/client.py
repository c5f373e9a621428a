"""One process of the load generator: `python -m bench.throughput.client JOB`.

Connects, says `ready`, waits for a line with the span, streams, says what came. Several of these share the load, so
that it is not what limits; each says how busy it was.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

import grpc.aio

from bench.relay.cpu import used_s
from bench.relay.load import Lag, quantile
from bench.throughput.job import Done, Job, Span
from stoker.v1 import generation_pb2, inference_pb2, inference_pb2_grpc
from stoker_client import Client
from stoker_common import event_loop
from stoker_common.channel import client_options

_WARM_TOKENS = 2


class Way(Protocol):
    """How streams are asked for. `close` ends it."""

    def stream(self, i: int, prompt: Sequence[int], text: str, tokens: int) -> AsyncGenerator[int, None]:
        """Stream number `i`: how many tokens each message brought."""

    async def close(self) -> None:
        """Close all connections."""


class Sdk:
    """Through the SDK: a link where it makes one, or direct mode."""

    def __init__(self, job: Job) -> None:
        self._client = Client(job.address, mode="direct" if job.way == "direct" else "relay")
        self._model = job.model

    async def stream(self, i: int, prompt: Sequence[int], text: str, tokens: int) -> AsyncGenerator[int, None]:
        """See `Way`."""
        ids = None if text else prompt
        async with self._client.stream(
            text or None, token_ids=ids, model=self._model, max_tokens=tokens, ignore_eos=True, temperature=0.0
        ) as chunks:
            async for chunk in chunks:
                yield len(chunk.token_ids)

    async def close(self) -> None:
        """See `Way`."""
        await self._client.close()


class Calls:
    """Plain stubs: a call for each stream, several streams on a channel."""

    def __init__(self, job: Job) -> None:
        self._model = job.model
        self._channels = [
            grpc.aio.insecure_channel(job.address, options=client_options())
            for _ in range(max(1, job.streams // job.streams_per_channel))
        ]
        self._stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in self._channels]

    async def stream(self, i: int, prompt: Sequence[int], text: str, tokens: int) -> AsyncGenerator[int, None]:
        """See `Way`."""
        sampling = generation_pb2.Sampling(max_tokens=tokens, ignore_eos=True, temperature=0.0)
        generation = generation_pb2.Generation(model=self._model, sampling=sampling)
        if text:
            generation.text = text
        else:
            generation.token_ids.ids.extend(prompt)
        stub = self._stubs[i % len(self._stubs)]
        call = stub.GenerateStream(inference_pb2.GenerateStreamRequest(generation=generation))
        try:
            async for part in call:
                yield sum(len(delta.token_ids) for delta in part.deltas)
        finally:
            call.cancel()

    async def close(self) -> None:
        """See `Way`."""
        for channel in self._channels:
            await channel.close()


class _Run:
    """The streams of one job in one span."""

    def __init__(self, job: Job, way: Way, span: Span) -> None:
        self._job, self._way, self._span = job, way, span
        self._rng = random.Random(job.seed)
        self.tokens = 0
        self.last_s = 0.0
        self.ttft_ms: list[float] = []

    async def streams(self) -> None:
        """All of them, once or until the span is over. Raises what a stream raises, RuntimeError for a short one."""
        from_s, to_s = self._span.from_s, self._span.to_s
        if to_s is None:
            await asyncio.sleep(from_s - time.monotonic())
            await asyncio.gather(*(self._one(i) for i in range(self._job.streams)))
            return
        tasks = [asyncio.ensure_future(self._again(i)) for i in range(self._job.streams)]
        await asyncio.wait(tasks, timeout=to_s - time.monotonic(), return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended

    async def _again(self, i: int) -> None:
        while True:
            await self._one(i)

    async def _one(self, i: int) -> None:
        job, span = self._job, self._span
        prompt = self._rng.choices(range(job.vocabulary // 8, job.vocabulary * 7 // 8), k=job.prompt_tokens)
        text = f"{job.text} {i}" if job.text else ""
        began_s, came = time.monotonic(), 0
        async with aclosing(self._way.stream(i, prompt, text, job.tokens)) as counts:
            async for count in counts:
                now_s = time.monotonic()
                if not came and count:
                    self.ttft_ms.append((now_s - began_s) * 1e3)
                came += count
                if now_s >= span.from_s and (span.to_s is None or now_s < span.to_s):
                    self.tokens += count
                    self.last_s = now_s
        if came != job.tokens:
            raise RuntimeError(f"stream {i} ended after {came} of {job.tokens} tokens")


async def work(job: Job) -> None:
    """Connect, and do as standard input says."""
    way: Way = Calls(job) if job.way == "calls" else Sdk(job)
    try:
        # All channels, and the link, which takes two streams at a time.
        await _Run(replace(job, tokens=_WARM_TOKENS), way, Span(time.monotonic(), None)).streams()
        _say("ready")
        span = Span.parse(await asyncio.to_thread(sys.stdin.readline))
        run, lag = _Run(replace(job, seed=job.seed + 1), way, span), Lag()
        lagging = asyncio.ensure_future(lag.run())
        cpu_s, began_s = used_s([os.getpid()]), time.monotonic()
        await run.streams()
        cores = (used_s([os.getpid()]) - cpu_s) / (time.monotonic() - began_s)
        lagging.cancel()
        _say(Done(run.tokens, run.last_s, run.ttft_ms, cores, quantile(lag.late_ms, 0.99)).line())
    finally:
        await way.close()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Parse and work."""
    event_loop.run(work(Job.parse(sys.argv[1])))


if __name__ == "__main__":
    main()
