"""What each way of resuming keeps and costs on a vLLM engine: `python -m bench.resume --model FOLDER`.

Every output is generated twice without a fault, which shows whether it repeats at all, and then resumed after several
of its tokens in each mode the engine has. Prints one table of how often the outcome was the same, id by id and with its
text, alone and with many streams at once, and one of the time to the first token that is new.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from model_server.engine import Engine, EngineRefused, EngineRequest, ResumeMode
from model_server.engines.vllm_settings import VllmSettings, environment
from stoker.v1 import generation_pb2

Sampling = generation_pb2.Sampling
PROMPT = "Write a short story about a lighthouse keeper."
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
}
GREEDY = Sampling(temperature=0, ignore_eos=True)
PENALTIES = Sampling(ignore_eos=True, frequency_penalty=1.0, presence_penalty=0.5, repetition_penalty=1.2)

_ids = itertools.count()


@dataclass(frozen=True)
class Outcome:
    """One output, and when its new tokens began to come."""

    token_ids: tuple[int, ...]
    text: str
    logprob_ids: tuple[int, ...]
    finish: int
    first_new_s: float

    def same(self, other: "Outcome") -> bool:
        """Whether the client could tell them apart. Of what was resumed, the first logprobs may be missing."""
        told = min(len(self.logprob_ids), len(other.logprob_ids))
        return (self.token_ids, self.text, self.finish) == (other.token_ids, other.text, other.finish) and (
            told == 0 or self.logprob_ids[-told:] == other.logprob_ids[-told:]
        )


async def outcome(engine: Engine, request: EngineRequest) -> Outcome:
    """Generate to the end."""
    request = replace(request, request_id=f"bench-{next(_ids)}")
    token_ids: list[int] = []
    logprob_ids: list[int] = []
    text = ""
    finish = 0
    began = time.perf_counter()
    first_new_s = 0.0
    async with aclosing(engine.generate(request)) as outputs:
        async for output in outputs:
            token_ids += output.token_ids
            logprob_ids += [place.token.token_id for place in output.logprobs]
            text += output.text
            finish = output.finish_reason
            if not first_new_s and len(token_ids) > len(request.emitted_token_ids):
                first_new_s = time.perf_counter() - began
    return Outcome(tuple(token_ids), text, tuple(logprob_ids), finish, first_new_s)


def resumed(request: EngineRequest, token_ids: Sequence[int], mode: ResumeMode) -> EngineRequest:
    """The request, after these ids."""
    return replace(request, emitted_token_ids=tuple(token_ids), resume_mode=mode)


async def kinds(engine: Engine, prompt: tuple[int, ...], tokens: int) -> dict[str, EngineRequest]:
    """A request of each kind of sampling. Those that stop do so by what the greedy output has."""

    def made(sampling: Sampling, form: generation_pb2.StructuredOutput | None = None) -> EngineRequest:
        return EngineRequest("", prompt, sampling, tokens, structured_output=form)

    greedy = await outcome(engine, made(GREEDY))

    def penalised(sampling: Sampling) -> Sampling:
        sampling.MergeFrom(PENALTIES)
        return sampling

    at = len(greedy.text) * 4 // 5
    seeded = Sampling(temperature=0.9, seed=42, ignore_eos=True)
    stop_token = greedy.token_ids[tokens // 3]
    form = generation_pb2.StructuredOutput(json_schema=json.dumps(SCHEMA))
    return {
        "greedy": made(GREEDY),
        "seeded": made(seeded),
        "seeded, top-p and top-k": made(Sampling(temperature=0.8, top_p=0.9, top_k=40, seed=7, ignore_eos=True)),
        "penalties": made(penalised(Sampling(temperature=0))),
        "penalties, seeded": made(penalised(Sampling(temperature=0.9, seed=3))),
        "JSON schema": made(Sampling(temperature=0), form),
        "JSON schema, seeded": made(Sampling(temperature=0.9, seed=5), form),
        "stop string": made(Sampling(temperature=0, ignore_eos=True, stop=[greedy.text[at : at + 8]])),
        "min_tokens": made(
            Sampling(temperature=0, ignore_eos=True, stop_token_ids=[stop_token], min_tokens=tokens * 2 // 3)
        ),
        "logprobs": made(Sampling(temperature=0, ignore_eos=True, logprobs=3)),
    }


async def alone(engine: Engine, requests: dict[str, EngineRequest], points: int) -> None:
    """Each kind with the engine to itself."""
    modes = engine.info.resume_modes
    print(f"| alone, {points} points each | repeats | {' | '.join(mode.value for mode in modes)} |")
    print(f"|{' --- |' * (len(modes) + 2)}")
    for name, request in requests.items():
        reference, again = await outcome(engine, request), await outcome(engine, request)
        length = len(reference.token_ids)
        places = sorted({max(1, length * step // (points + 1)) for step in range(1, points + 1)})
        cells: list[str] = []
        for mode in modes:
            same = 0
            try:
                for place in places:
                    request_again = resumed(request, reference.token_ids[:place], mode)
                    answer = await outcome(engine, request_again)
                    same += answer.same(reference)
                cells.append(f"{same}/{len(places)}")
            except EngineRefused:
                cells.append("refused")
        repeats = "yes" if reference.same(again) else "no"
        print(f"| {name} ({length}) | {repeats} | {' | '.join(cells)} |", flush=True)


async def together(engine: Engine, requests: dict[str, EngineRequest], streams: int) -> None:
    """All kinds mixed, many at once: without a fault, again, and resumed at a random token in each mode."""
    modes = engine.info.resume_modes
    chosen: list[EngineRequest] = []
    for number, (_, request) in zip(range(streams), itertools.cycle(requests.items()), strict=False):
        prompt = await engine.encode(generation_pb2.Generation(text=f"Story number {number}. {PROMPT}"))
        chosen.append(replace(request, prompt_token_ids=tuple(prompt)))
    names = [name for name, _ in zip(itertools.cycle(requests), chosen, strict=False)]

    async def all_of(made: Sequence[EngineRequest]) -> list[Outcome | None]:
        async def one(request: EngineRequest) -> Outcome | None:
            try:
                return await outcome(engine, request)
            except EngineRefused:
                return None

        return list(await asyncio.gather(*(one(request) for request in made)))

    references = [reference for reference in await all_of(chosen) if reference is not None]
    rng = random.Random(1)
    places = [rng.randrange(1, max(2, len(reference.token_ids))) for reference in references]
    print(f"\n| {streams} at once | same | refused | not the same |\n| --- | --- | --- | --- |")

    def report(name: str, answers: Sequence[Outcome | None]) -> None:
        pairs = list(zip(answers, references, names, strict=True))
        same = sum(answer is not None and answer.same(reference) for answer, reference, _ in pairs)
        other = [kind for answer, reference, kind in pairs if answer is not None and not answer.same(reference)]
        counts = ", ".join(f"{kind} {other.count(kind)}" for kind in dict.fromkeys(other)) or "none"
        print(f"| {name} | {same} | {sum(answer is None for answer in answers)} | {counts} |", flush=True)

    report("repeated", await all_of(chosen))
    for mode in modes:
        again = [
            resumed(request, reference.token_ids[:place], mode)
            for request, reference, place in zip(chosen, references, places, strict=True)
        ]
        report(mode.value, await all_of(again))


async def gaps(engine: Engine, prompt_tokens: int, emitted: Sequence[int], times: int, background: int) -> None:
    """The time from asking to the first new token, nothing of it cached; with so many other streams decoding."""
    words = await engine.encode(generation_pb2.Generation(text=PROMPT))
    prompt = tuple(itertools.islice(itertools.cycle(words), prompt_tokens))
    sampling = Sampling(temperature=0, ignore_eos=True, skip_reading_prefix_cache=True)
    request = EngineRequest("", prompt, sampling, max(emitted) + 4)
    reference = await outcome(engine, request)
    modes = engine.info.resume_modes
    others = [
        asyncio.ensure_future(outcome(engine, EngineRequest("", (*prompt[:100], number), GREEDY, 1_000_000)))
        for number in range(background)
    ]
    try:
        print(f"\n| first new token, ms ({background} others) | anew | {' | '.join(m.value for m in modes)} |")
        print(f"|{' --- |' * (len(modes) + 2)}")
        for count in emitted:
            made: list[Callable[[], EngineRequest]] = [lambda: replace(request, max_tokens=1)]
            for mode in modes:
                ids = reference.token_ids[:count]
                made.append(lambda ids=ids, mode=mode: resumed(replace(request, max_tokens=len(ids) + 2), ids, mode))  # type: ignore[misc]
            cells: list[str] = []
            for make in made:
                await outcome(engine, make())
                took = [(await outcome(engine, make())).first_new_s * 1000 for _ in range(times)]
                cells.append(f"{statistics.median(took):.0f}")
            print(f"| {prompt_tokens} + {count} | {' | '.join(cells)} |", flush=True)
    finally:
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def measure(options: argparse.Namespace, settings: VllmSettings) -> None:
    """All of it on one engine."""
    from model_server.engines.vllm_engine import VllmEngine

    engine = VllmEngine(settings)
    began = time.perf_counter()
    await engine.start()
    try:
        print(f"{engine.info.numerics_class}, loaded in {time.perf_counter() - began:.0f} s\n", flush=True)
        prompt = tuple(await engine.encode(generation_pb2.Generation(text=PROMPT)))
        requests = await kinds(engine, prompt, options.tokens)
        await alone(engine, requests, options.points)
        if options.streams:
            await together(engine, requests, options.streams)
        for background in options.background if options.emitted else ():
            await gaps(engine, options.prompt_tokens, options.emitted, options.times, background)
        await engine.check()
    finally:
        await engine.stop()


def main() -> None:
    """Parse, set vLLM's environment, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / ".cache/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"))
    parser.add_argument("--tokens", type=int, default=96, help="of each output")
    parser.add_argument("--points", type=int, default=5, help="to resume each output at")
    parser.add_argument("--streams", type=int, default=0, help="at once")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--emitted", type=int, nargs="*", default=[100, 500, 1000])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--background", type=int, nargs="*", default=[0], help="other streams while gaps are measured")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.5)
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args()
    settings = VllmSettings(
        model=options.model,
        load_format=options.load_format,
        dtype=options.dtype,
        gpu_memory_utilization=options.gpu_memory_utilization,
        enforce_eager=options.eager or None,
    )
    os.environ.update(environment(settings, os.environ))
    asyncio.run(measure(options, settings))


if __name__ == "__main__":
    main()
