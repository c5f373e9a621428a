"""How fast a vLLM engine is, for the simulator: `python -m bench.calibrate --model FOLDER --out FILE.json`.

Prefill by the length of the prompt, the time between tokens by the streams that run, and both while long prompts come
in among running streams. Prompts are random ids, so nothing is cached; dummy weights (`--load-format dummy`) serve as
well as real ones. Times are what this process sees of the engine: with the overhead of vLLM, without ours.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from bench.turn import turn
from model_server.engine import Engine, EngineRequest
from model_server.engines.vllm_settings import VllmSettings, environment
from stoker.v1 import generation_pb2

_GREEDY = generation_pb2.Sampling(temperature=0, ignore_eos=True)
# Of streams that are measured decoding.
PROMPT_TOKENS = 128
_ids = itertools.count()


class Probe:
    """Asks an engine for sequences and notes when their tokens come."""

    def __init__(self, engine: Engine, rng: random.Random) -> None:
        self._engine, self._rng = engine, rng

    async def times(self, prompt_tokens: int, tokens: int) -> list[float]:
        """Seconds from asking to each output, of a prompt that nobody asked before."""
        prompt = tuple(self._rng.choices(range(1000, self._engine.info.vocabulary - 1000), k=prompt_tokens))
        request = EngineRequest(f"calibrate-{next(_ids)}", prompt, _GREEDY, tokens)
        began_s = time.perf_counter()
        async with aclosing(self._engine.generate(request)) as outputs:
            return [time.perf_counter() - began_s async for _ in outputs]

    async def prefill(self, prompt_tokens: int, times: int) -> dict[str, float]:
        """One prompt, alone."""
        took = [(await self.times(prompt_tokens, 1))[0] for _ in range(times)]
        median_s = statistics.median(took)
        return {
            "prompt_tokens": prompt_tokens,
            "ttft_ms": round(1000 * median_s, 2),
            "tokens_per_s": round(prompt_tokens / median_s, 1),
        }

    async def decode(self, streams: int, tokens: int) -> dict[str, float]:
        """So many streams; the gaps count from when the last one has its first token until the first one ends."""
        began_s = time.perf_counter()
        arrivals = await asyncio.gather(*(self._arrivals(PROMPT_TOKENS, tokens) for _ in range(streams)))
        from_s, to_s = max(each[0] for each in arrivals), min(each[-1] for each in arrivals)
        gaps = _gaps(arrivals, from_s, to_s)
        return {
            "streams": streams,
            **_summary(gaps),
            "tokens_per_s": round(streams / statistics.mean(gaps), 1),
            "all_begun_ms": round(1000 * (from_s - began_s), 1),
        }

    async def mixed(self, streams: int, long_tokens: int, prompts: int, tokens: int) -> dict[str, object]:
        """So many streams, among which long prompts come, one when the one before has its first token."""
        running = [asyncio.ensure_future(self._arrivals(PROMPT_TOKENS, tokens)) for _ in range(streams)]
        await self.times(PROMPT_TOKENS, 8)  # by then they all run
        from_s = time.perf_counter()
        took = [(await self.times(long_tokens, 1))[0] for _ in range(prompts)]
        to_s = time.perf_counter()
        arrivals = await asyncio.gather(*running)
        return {
            "streams": streams,
            "long_prompt_tokens": long_tokens,
            "long_prompts": prompts,
            "long_ttft_ms": [round(1000 * each, 1) for each in took],
            "during": _summary(_gaps(arrivals, from_s, to_s)),
        }

    async def _arrivals(self, prompt_tokens: int, tokens: int) -> list[float]:
        began_s = time.perf_counter()
        return [began_s + each for each in await self.times(prompt_tokens, tokens)]


def _gaps(arrivals: Sequence[Sequence[float]], from_s: float, to_s: float) -> list[float]:
    """The gaps that begin and end within a window. Raises ValueError if it has none."""
    gaps = [
        after - before
        for each in arrivals
        for before, after in itertools.pairwise(each)
        if before >= from_s and after <= to_s
    ]
    if not gaps:
        raise ValueError("the streams ended before they all ran: ask for more --tokens")
    return gaps


def _summary(gaps: Sequence[float]) -> dict[str, float]:
    ordered = sorted(gaps)
    most = {"p50": ordered[len(ordered) // 2], "p95": ordered[len(ordered) * 95 // 100], "most": ordered[-1]}
    return {f"itl_{name}_ms": round(1000 * value, 2) for name, value in most.items()}


async def measure(options: argparse.Namespace, settings: VllmSettings) -> dict[str, object]:
    """All of it on one engine."""
    from model_server.engines.vllm_engine import VllmEngine

    engine = VllmEngine(settings)
    began_s = time.perf_counter()
    await engine.start()
    loaded_s = time.perf_counter() - began_s
    probe = Probe(engine, random.Random(1))
    try:
        longest = engine.info.max_model_tokens - 8
        lengths = [each for each in options.prompts if each <= longest]
        async with turn(options.turn):
            for warm in (lengths[0], lengths[-1]):
                await probe.times(warm, 4)
            prefill = [await probe.prefill(each, options.times) for each in lengths]
            decode = [await probe.decode(each, options.tokens) for each in options.streams]
            mixed = [
                await probe.mixed(each, min(options.long_prompt, longest), options.times, options.mixed_tokens)
                for each in options.mixed
            ]
        info = engine.info
        return {
            "accelerator": info.accelerator,
            "engine": f"{info.engine} {info.version}",
            "numerics": info.numerics_class,
            "model": info.model,
            "weights": options.load_format,
            "max_streams": info.max_streams,
            "kv_tokens": info.kv_tokens,
            "block_tokens": info.block_tokens,
            "eager": bool(settings.resolved().enforce_eager),
            "loaded_s": round(loaded_s, 1),
            "prefill": prefill,
            "decode": decode,
            "mixed": mixed,
        }
    finally:
        await engine.stop()


def main() -> None:
    """Parse, set vLLM's environment, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / ".cache/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--kv-cache-memory-bytes", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 256, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--tokens", type=int, default=64, help="of each stream, where only streams run")
    parser.add_argument("--mixed", type=int, nargs="*", default=[32, 128], help="streams that long prompts come among")
    parser.add_argument("--mixed-tokens", type=int, default=256, help="of each of them")
    parser.add_argument("--long-prompt", type=int, default=4096, help="tokens of a long prompt")
    parser.add_argument("--times", type=int, default=3, help="each prompt")
    parser.add_argument("--turn", type=Path, help="a lock file: takes turns with other runs that name it")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    settings = VllmSettings(
        model=options.model,
        load_format=options.load_format,
        max_model_len=options.max_model_len,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        gpu_memory_utilization=options.gpu_memory_utilization,
        enforce_eager=options.eager or None,
    )
    os.environ.update(environment(settings, os.environ))
    measured = asyncio.run(measure(options, settings))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
