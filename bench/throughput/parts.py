"""The three parts of the benchmark. Each yields its rows as they come: what there is when time is up is kept."""

import asyncio
import json
import os
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

from bench.relay.script import MODEL, UNPACED
from bench.relay.systems import ROOT
from bench.throughput import shares
from bench.throughput.job import WAYS, Job
from bench.throughput.load import Row, Watched, measure
from bench.throughput.processes import Processes, processes

ALONE = "AsyncLLM alone"
T = TypeVar("T")
_LOADED_WITHIN_S = 400.0
_STOP_S = 30.0
_UP_WITHIN_S = 60.0
# As many tokens as fit: nothing but the front end and the loop takes time.
_FAST_SIM = (
    *("--engine", "sim", "--model", MODEL, "--sim-step-per-stream-ms", "0", "--sim-max-streams", "1024"),
    *("--sim-max-batched-tokens", "65536", "--sim-kv-tokens", "4000000", "--sim-prefill-tokens-per-second", "1e9"),
)
_SIM_VOCABULARY = 32_000
_STEP_MS = 20


async def engine(given: Namespace, folder: Path) -> AsyncIterator[Row]:
    """vLLM alone and a model server with the same settings behind a router: over the link, by calls, direct.

    Together they take turns; apart, one is loaded when the other one has gone.
    """
    about = {"part": "engine", "model": given.model.name}
    if given.together:
        async for row in _in_turns(given, folder, None):
            yield {**about, **row}
        return
    for kind in (_alone, _mesh):
        async with kind(given, folder) as one:
            await one.loaded()
            for number in range(given.rounds):
                async for row in one.round(number):
                    yield {**about, "round": number, "together": False, **row}


async def core(given: Namespace, folder: Path) -> AsyncIterator[Row]:
    """The same before an engine core that is made up, which makes a step every `--step-ms` whether or not the front end
    keeps up: what the front end alone costs, without a GPU."""
    # A CPU's default is few; this core takes as many as come.
    given.flags = ["--vllm-max-num-seqs", str(given.streams), *given.flags]
    async for row in _in_turns(given, folder, given.step_ms):
        yield {"part": "core", "model": given.model.name, "step_ms": given.step_ms, **row}


async def _in_turns(given: Namespace, folder: Path, step_ms: float | None) -> AsyncIterator[Row]:
    async with AsyncExitStack() as held:
        sides = _alone(given, folder, step_ms), _mesh(given, folder, step_ms)
        # Both load at once; what they say of it comes in any order.
        running = [await held.enter_async_context(each) for each in sides]
        for each in running:
            await each.loaded()
        for number in range(given.rounds):
            for each in running:
                async for row in each.round(number):
                    yield {"round": number, "together": True, **row}


class _Side(Protocol):
    """One of the two that are held against each other."""

    async def loaded(self) -> None:
        """Wait until it has loaded. Raises RuntimeError."""

    def round(self, number: int) -> AsyncIterator[Row]:
        """What it reaches."""


class _Alone:
    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    async def loaded(self) -> None:
        async with asyncio.timeout(_LOADED_WITHIN_S):
            await self._said()

    async def round(self, number: int) -> AsyncIterator[Row]:
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        yield {"way": ALONE, **json.loads(await self._said())}

    async def _said(self) -> str:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"AsyncLLM alone ended: {self._log} says why")
        return line.decode()


class _Mesh:
    def __init__(self, given: Namespace, up: Processes, router: str) -> None:
        self._given = given
        self._up = up
        self._router = router
        self._vocabulary = int(json.loads((given.model / "config.json").read_text())["vocab_size"])

    async def loaded(self) -> None:
        await self._up.routable(self._router, 1, _LOADED_WITHIN_S)

    async def round(self, number: int) -> AsyncIterator[Row]:
        given = self._given
        watched = self._up.watched("server") | self._up.watched("router")
        for way in _turned(given.ways, number):
            job = Job(
                *(self._router, way, given.model.name, given.streams, given.tokens),
                seed=1000 * (number + 1) + 100 * WAYS.index(way),
                prompt_tokens=given.prompt_tokens,
                vocabulary=self._vocabulary,
            )
            yield {"way": way, **await measure(job, given.load_processes, None, watched)}


@asynccontextmanager
async def _alone(given: Namespace, folder: Path, step_ms: float | None = None) -> AsyncIterator[_Side]:
    sizes = {"streams": given.streams, "prompt-tokens": given.prompt_tokens, "tokens": given.tokens}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    if step_ms is not None:
        options.append(f"--core-step-ms={step_ms}")
    log = folder / "alone.log"
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.throughput.alone", *options, "--", *_model_flags(given)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=out,
            cwd=ROOT,
            # Empty: no plugin of ours, nor of anybody else. What it compiles is its own, since two compile at once.
            env={**os.environ, "VLLM_PLUGINS": "", "VLLM_CACHE_ROOT": f"{folder}/alone-cache"},
            start_new_session=True,
        )
    try:
        yield _Alone(process, log)
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    finally:
        await _killed(process)


async def _killed(process: asyncio.subprocess.Process) -> None:
    """It and its engine, where it has not ended by itself."""
    if process.returncode is None:
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            each.kill()
        await process.wait()


@asynccontextmanager
async def _mesh(given: Namespace, folder: Path, step_ms: float | None = None) -> AsyncIterator[_Side]:
    module = ("model_server",) if step_ms is None else ("bench.throughput.core_server", str(step_ms))
    async with processes(folder) as up:
        up.server("server", *_model_flags(given), registered=True, module=module)
        yield _Mesh(given, up, up.router("router"))


async def front(given: Namespace, folder: Path) -> AsyncIterator[Row]:
    """A model server's front end with a simulated engine, as fast as it goes and at a token every 20 ms."""
    async with processes(folder) as up:
        # Clients come at the server itself: nothing is registered, so no router asks anything of it.
        steps = {"unpaced": 0, f"every {_STEP_MS} ms": _STEP_MS}
        flags = {pace: [*_FAST_SIM, "--sim-step-base-ms", str(ms)] for pace, ms in steps.items()}
        addresses = {pace: up.server(f"sim {pace}", *flags[pace], registered=False) for pace in steps}
        for address in addresses.values():
            await up.listens(address, _UP_WITHIN_S)
        for number in range(given.rounds):
            for pace, address in addresses.items():
                for way in [way for way in _turned(given.ways, number) if way != "direct"]:
                    job = Job(
                        *(address, way, MODEL, given.streams, given.tokens),
                        seed=100 * number,
                        prompt_tokens=given.prompt_tokens,
                        vocabulary=_SIM_VOCABULARY,
                    )
                    watched = {"server": Watched(up.pid(f"sim {pace}"))}
                    row = await measure(job, given.load_processes, given.window_s, watched)
                    yield {"part": "front", "way": way, "pace": pace, "round": number, **row}


async def routers(given: Namespace, folder: Path) -> AsyncIterator[Row]:
    """Several router processes against one, with as many streams as are unpaced, over as many channels."""
    async with processes(folder) as up:
        for number in range(given.mocks):
            up.mock(f"mock-{number}")
        several = f"x{given.processes}"
        addresses = {"x1": up.router("x1"), several: up.router(several, "--processes", str(given.processes))}
        for address in addresses.values():
            await up.routable(address, given.mocks, _UP_WITHIN_S)
        mocks = {f"mock-{number}": Watched(up.pid(f"mock-{number}")) for number in range(given.mocks)}
        per_channel = max(1, given.streams // given.channels)
        for number in range(given.rounds):
            for name in _turned(list(addresses), number):
                # The mocks take the prompt's first word for how to answer.
                job = Job(
                    *(addresses[name], "calls", MODEL, given.streams, given.tokens),
                    seed=0,
                    text=UNPACED,
                    streams_per_channel=per_channel,
                )
                pids = shares.processes(up.pid(name))
                each = {f"process-{place}": Watched(pid) for place, pid in enumerate(pids)}
                watched = {"router": Watched(up.pid(name), children=True), **mocks, **each}
                look = partial(shares.row, pids, int(addresses[name].rpartition(":")[2]))
                row = await measure(job, given.relay_load_processes, given.window_s, watched, look)
                mock_cores, cores = _cores(row, mocks), _cores(row, each)
                yield {
                    **{"part": "routers", "way": name, "round": number, **row},
                    **{"mocks": given.mocks, "mock_cores_most": max(mock_cores)},
                    **{"process_cores_least": min(cores), "process_cores_most": max(cores)},
                }


def _cores(row: Row, names: Iterable[str]) -> list[float]:
    """The cores of each of them, taken out of the row."""
    for name in names:
        del row[f"{name}_us_per_token"]
    return [float(str(row.pop(f"{name}_cores"))) for name in names]


PARTS: dict[str, Callable[[Namespace, Path], AsyncIterator[Row]]] = {
    "engine": engine,
    "core": core,
    "front": front,
    "routers": routers,
}


def _model_flags(given: Namespace) -> list[str]:
    return ["--engine", "vllm", "--model", str(given.model), *given.flags]


def _turned(items: list[T], by: int) -> list[T]:
    """The same, another one first in each round."""
    return [*items[by % len(items) :], *items[: by % len(items)]]
