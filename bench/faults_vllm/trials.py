"""The trials, one after the other: controls without a fault before and among them, kills and cuts in turn."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.faults_vllm.kinds import Asked, stopping
from bench.faults_vllm.mesh import Mesh
from bench.faults_vllm.stream import Came, follow
from bench.turn import turn

NONE, KILL, ENGINE, CUT = "none", "kill", "engine", "cut"
_LOADED_WITHIN_S = 300.0


@dataclass
class Trial:
    """One trial. Times in seconds from the fault: `excluded_s` until the router would not choose the server any more,
    `exit_s` until it ended by itself, `back_s` until the router would choose it again."""

    fault: str
    hit: str = ""
    came: dict[str, Came] = field(default_factory=dict)
    excluded_s: float | None = None
    exit_s: float | None = None
    back_s: float | None = None


def order(kills: int, engines: int, cuts: int, controls: int) -> list[str]:
    """The faults, spread evenly, with a control before each fifth part of them and `controls` before all."""
    faults = sorted(
        (place / count, fault)
        for fault, count in ((KILL, kills), (ENGINE, engines), (CUT, cuts))
        for place in range(count)
    )
    every = max(1, len(faults) // 5)
    mixed = [NONE] * controls
    for number, (_, fault) in enumerate(faults):
        if number % every == 0 and number:
            mixed.append(NONE)
        mixed.append(fault)
    return [*mixed, NONE]


async def with_stop_strings(mesh: Mesh, asked: Sequence[Asked]) -> list[Asked]:
    """The streams, those of kind `stop string` with one that their own output has."""
    made: list[Asked] = []
    for each in asked:
        if each.kind != "stop string":
            made.append(each)
            continue
        came = await follow(mesh.channel, each, {})
        if came.error:
            raise RuntimeError(f"{each.name} failed without a fault: {came.error}")
        made.append(stopping(each, came.text))
    return made


async def run(
    mesh: Mesh, asked: Sequence[Asked], faults: Sequence[str], rng: random.Random, lock: Path | None
) -> AsyncIterator[Trial]:
    """All trials. With two servers each waits until both are there; with more, one may still be loading.

    A trial whose streams were over before its fault is one without a fault, and is repeated.
    """
    needed = max(2, len(mesh.servers) - 1)
    coming_back: list[asyncio.Task[None]] = []
    left = list(faults)
    while left:
        fault = left.pop(0)
        await mesh.until_usable(needed, _LOADED_WITHIN_S)
        async with turn(lock):
            done = await _trial(mesh, asked, fault, rng)
        if done.fault != fault:
            left.insert(0, fault)
        if done.fault in (KILL, ENGINE):
            coming_back.append(asyncio.create_task(_start_again(mesh, done)))
            if needed == len(mesh.servers):
                await coming_back[-1]
        yield done
    for task in coming_back:
        await task


async def _start_again(mesh: Mesh, trial: Trial) -> None:
    began_s = time.monotonic()
    mesh.servers[trial.hit].start()
    async with asyncio.timeout(_LOADED_WITHIN_S):
        while trial.hit not in await mesh.usable():  # noqa: ASYNC110 - the router's word
            await asyncio.sleep(0.1)
    trial.back_s = time.monotonic() - began_s


async def _trial(mesh: Mesh, asked: Sequence[Asked], fault: str, rng: random.Random) -> Trial:
    """All streams at once, with the fault when most have got some tokens."""
    trial = Trial(fault)
    progress: dict[str, int] = {}
    streams = {each.name: asyncio.ensure_future(follow(mesh.channel, each, progress)) for each in asked}
    if fault != NONE:
        trial.hit = rng.choice(sorted(await mesh.usable() or mesh.servers))
        tokens = min(each.generation.sampling.max_tokens for each in asked)
        least = rng.randint(3, max(4, tokens // 2))
        while sum(count >= least for count in progress.values()) < len(asked) * 3 // 4:
            if all(stream.done() for stream in streams.values()):
                trial.fault, trial.hit = NONE, ""  # they were over, or had failed by themselves
                break
            await asyncio.sleep(0.002)
        else:
            await _do(mesh, trial)
    trial.came = {name: await stream for name, stream in streams.items()}
    return trial


async def _do(mesh: Mesh, trial: Trial) -> None:
    server = mesh.servers[trial.hit]
    match trial.fault:
        case "kill":
            server.kill()
            trial.excluded_s = await mesh.until_excluded(trial.hit)
        case "engine":
            began_s = time.monotonic()
            server.kill_engine()
            trial.excluded_s = await mesh.until_excluded(trial.hit)
            await server.ended()
            trial.exit_s = time.monotonic() - began_s
        case _:
            server.proxy.cut()
