"""LoRA adapters on real vLLM: `python -m bench.warm.adapters --out ROWS.jsonl` writes a row for each step.

One server with adapters of random weights on all linear projections, behind a router. Adapters are loaded through
`ModelService` and by being asked for, are let go and loaded again; streams run on the base, on one adapter, on several
at once, and beside adapters that come and go. With a second model (`--second`) the base is put to sleep as well. What
follows `--` goes to the server: `-- --vllm-load-format dummy`.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path

from bench.faults_vllm.mesh import ROOT, ServerKind, running
from bench.relay.load import quantile
from bench.stopped import until_stopped
from bench.warm.load import Row
from bench.warm.lora_weights import LINEAR, random_adapter
from stoker_client import Client, StokerError

_MODEL = Path(os.environ.get("STOKER_MODEL") or ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct")
_LOADED_WITHIN_S, _WITHIN_S = 400.0, 180.0
_PROMPT, _ANSWER_TOKENS, _STREAM_TOKENS = "The capital of France is", 16, 256
BASE = "base"


class Adapters:
    """The measurements on one server, whose base is called `base`. `most` adapters fit at once; there are more."""

    def __init__(self, client: Client, names: Sequence[str], most: int, streams: int, seconds: float) -> None:
        self._client, self._names, self._most = client, names, most
        self._streams, self._seconds = streams, seconds

    async def run(self) -> AsyncGenerator[Row, None]:
        """All steps, told as they are done."""
        first, late = self._names[: self._most], self._names[self._most :]
        for _ in range(3):
            yield await self._step("first token, base", BASE, partial(self._answer, BASE, 1))
        plain = await self._answer(BASE)
        for name in first:
            yield await self._step("load", name, partial(self._load, name))
            yield await self._step("first token, hot", name, partial(self._answer, name, 1))
        said = {name: await self._answer(name) for name in first}
        yield {"step": "answers", "adapters": len(first), "distinct": len({plain, *said.values()})}
        for name in late:
            step = "first token, never loaded, another one makes room"
            yield await self._step(step, name, partial(self._answer, name, 1))
        for name in (first[0],) * 3:
            yield await self._step("unload", name, partial(self._client.unload_model, name))
            yield await self._step("load again", name, partial(self._load, name))
        again = {name: await self._answer(name) for name in first}
        yield {"step": "answers after all moved", "as_before": sum(again[name] == said[name] for name in first)}
        yield await self._under_load("streams: base", (BASE,))
        yield await self._under_load("streams: one adapter", first[:1])
        yield await self._under_load("streams: all hot adapters", first)
        yield await self._under_load("streams: base and adapters", (BASE, *first))
        yield await self._under_load("streams: base, adapters come and go", (BASE,), moving=late[0])
        yield await self._under_load("streams: base, again", (BASE,))

    async def asleep(self) -> AsyncGenerator[Row, None]:
        """What an adapter costs whose base sleeps: it wakes first."""
        name = self._names[0]
        for _ in range(2):
            yield await self._step("sleep", BASE, partial(self._client.sleep_model, BASE))
            yield await self._step("first token, the base asleep", name, partial(self._answer, name, 1))
            yield await self._step("first token, hot", name, partial(self._answer, name, 1))

    async def _step(self, what: str, model: str, work: Callable[[], Awaitable[object]]) -> Row:
        step: Row = {"step": what, "model": model}
        began_s = time.perf_counter()
        try:
            await work()
        except StokerError as error:
            step["error"] = f"{error.code.name}: {error.message}"
        return step | {"seconds": round(time.perf_counter() - began_s, 4)}

    async def _load(self, name: str) -> None:
        async with aclosing(self._client.load_model(name, timeout_s=_WITHIN_S)) as news:
            async for _ in news:
                pass

    async def _answer(self, model: str, tokens: int = _ANSWER_TOKENS) -> tuple[int, ...]:
        ids: list[int] = []
        stream = self._client.stream(
            _PROMPT, model=model, max_tokens=tokens, ignore_eos=True, temperature=0.0, timeout_s=_WITHIN_S
        )
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                ids += chunk.token_ids
        return tuple(ids)

    async def _under_load(self, what: str, models: Sequence[str], moving: str = "") -> Row:
        """Streams on these models in turn, for a while; `moving` is loaded and let go meanwhile, again and again."""
        gaps_ms: list[float] = []
        errors: list[str] = []
        loads_ms: list[float] = []
        tokens = 0

        async def stream(number: int) -> None:
            nonlocal tokens
            while True:
                last_s = 0.0
                chunks = self._client.stream(
                    f"{number}. {_PROMPT}",
                    model=models[number % len(models)],
                    max_tokens=_STREAM_TOKENS,
                    ignore_eos=True,
                    temperature=0.0,
                    timeout_s=_WITHIN_S,
                )
                try:
                    async with aclosing(chunks) as coming:
                        async for chunk in coming:
                            now_s = time.perf_counter()
                            if last_s:
                                gaps_ms.append((now_s - last_s) * 1e3)
                            last_s = now_s
                            tokens += len(chunk.token_ids)
                except StokerError as error:
                    errors.append(f"{error.code.name}: {error.message}")
                    await asyncio.sleep(0.1)

        async def move() -> None:
            while True:
                began_s = time.perf_counter()
                await self._load(moving)
                loads_ms.append((time.perf_counter() - began_s) * 1e3)
                await self._client.unload_model(moving)

        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds), asyncio.TaskGroup() as tasks:
                for number in range(self._streams):
                    tasks.create_task(stream(number))
                if moving:
                    tasks.create_task(move())
        except TimeoutError:
            pass  # it is over
        took_s = time.perf_counter() - began_s
        row: Row = {"step": what, "streams": self._streams, "tokens_per_s": round(tokens / took_s, 1)}
        row |= {f"gap_{name}_ms": round(quantile(gaps_ms, q), 2) for name, q in _SHARES.items()} if gaps_ms else {}
        if moving:
            row["loads"] = len(loads_ms)
            row |= (
                {f"load_{name}_ms": round(quantile(loads_ms, q), 2) for name, q in _SHARES.items()} if loads_ms else {}
            )
        return row | {"failed": len(errors), "errors": errors[:3]}


_SHARES = {"p50": 0.5, "p99": 0.99, "most": 1.0}


async def measure(options: argparse.Namespace) -> None:
    """Write the adapters, start the mesh, write each row as it comes."""
    names = [f"adapter-{number}" for number in range(1, options.adapters + 1)]
    async with AsyncExitStack() as held:
        kept = Path(held.enter_context(tempfile.TemporaryDirectory()))
        folder = options.logs or kept
        folder.mkdir(parents=True, exist_ok=True)
        given = [
            f"{name}={random_adapter(kept / name, options.model, seed, rank=options.rank, modules=LINEAR)}"
            for seed, name in enumerate(names)
        ]
        size = sum(file.stat().st_size for file in (kept / names[0]).iterdir())
        flags = ["--model-name", BASE, "--adapters", ",".join(given), "--max-adapters", str(options.most)]
        flags += ["--vllm-max-lora-rank", str(options.rank), *(["--models", options.second] if options.second else [])]
        flags += options.flags
        kind = ServerKind(options.model, tuple(flags), cuttable=False, gpus=options.gpus)
        out = held.enter_context(options.out.open("w", encoding="utf-8"))

        def keep(row: Row) -> None:
            out.write(f"{json.dumps(row)}\n")
            out.flush()
            print(json.dumps(row), flush=True)

        about = {
            "model": options.model.name,
            "adapters": len(names),
            "max_adapters": options.most,
            "rank": options.rank,
        }
        keep(about | {"bytes": size, "second": options.second, "flags": options.flags})
        began_s = time.monotonic()
        mesh = await held.enter_async_context(running(kind, ["vllm-adapters"], folder))
        await mesh.until_usable(1, _LOADED_WITHIN_S)
        keep({"step": "the server's start", "seconds": round(time.monotonic() - began_s, 2)})
        client = await held.enter_async_context(Client(next(iter(mesh.routers.values()))))
        steps = Adapters(client, names, options.most, options.streams, options.seconds)
        for part in (steps.run(), *([steps.asleep()] if options.second else [])):
            async with aclosing(part) as rows:
                async for row in rows:
                    keep(row)


def main() -> None:
    """Parse and measure; what there is when it is told to end is kept."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.warm.adapters", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--most", type=int, default=4, help="of them hot at once")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each kind of load")
    parser.add_argument("--second", default="", metavar="NAME=FOLDER", help="a model more, so that the base can sleep")
    parser.add_argument("--gpus", type=int, default=0, help="0: the server sees all; 1: the first one")
    parser.add_argument("--model", type=Path, default=_MODEL, help="the base's folder")
    parser.add_argument("--logs", type=Path, help="folder to keep the processes' logs in")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("flags", nargs="*", help="of the server, after --")
    options = parser.parse_args()
    if not 0 < options.most < options.adapters:
        parser.error("more adapters than are hot at once, or nobody makes room")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    until_stopped(measure(options), "parts")


if __name__ == "__main__":
    main()
