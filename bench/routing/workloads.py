"""The workloads: a trace's requests, and made-up ones that each stress one thing. `load` is requests a second.

Lengths of made-up prompts and answers are lognormal around what the comments say: chats of ShareGPT's kind have medians
of some hundred tokens and a long tail (BurstGPT, Mooncake).
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

from bench.routing import synthetic, trace
from bench.routing.job import BLOCK_TOKENS, Chains, Job
from bench.routing.speeds import Speeds
from bench.routing.workload import Loss, ServerSpec, Workload, fleet

# How long the made-up ones last.
SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What a workload is made from. `load`: requests a second; `seed` decides everything that is random."""

    speeds: Speeds
    load: float
    seed: int = 1
    trace: Path | None = None
    seconds: float = SECONDS


def replayed(setting: Setting) -> Workload:
    """The trace, sped up until it has the load."""
    if setting.trace is None:
        raise ValueError("the workload `trace` needs a file: --trace")
    return Workload("trace", _sped(trace.read(setting.trace), setting.load), fleet(setting.speeds))


def held_out(setting: Setting) -> Workload:
    """The trace's conversations at other times (`synthetic.reshuffled`), sped up until they have the load."""
    if setting.trace is None:
        raise ValueError("the workload `held-out` needs a file: --trace")
    lines = synthetic.reshuffled(trace.records(setting.trace), setting.seed)
    return Workload("held-out", _sped(trace.jobs(lines), setting.load), fleet(setting.speeds))


def made_up(kind: str, setting: Setting) -> Workload:
    """A trace of a kind of `synthetic`."""
    lines = synthetic.make(kind, setting.load, setting.seconds, setting.seed)
    return Workload(kind, trace.jobs(lines), fleet(setting.speeds))


def sessions(setting: Setting) -> Workload:
    """Conversations: some six turns, each prompt with all that was said before; a pause of 15 s between turns."""
    return Workload("sessions", _conversations(setting), fleet(setting.speeds))


def system_prompts(setting: Setting) -> Workload:
    """Twelve applications with a system prompt of 2,000 to 12,000 tokens each, unevenly asked, single questions."""
    rng, chains, numbers = random.Random(setting.seed), Chains(), count()
    prompts = [chains.of((f"application {i}", j) for j in range(rng.randint(4, 24))) for i in range(12)]
    weights = [1 / (i + 1) for i in range(len(prompts))]
    jobs = []
    for at_s in _arrivals(rng, setting):
        number = next(numbers)
        shared = rng.choices(prompts, weights)[0]
        asked = _length(rng, 300)
        own = chains.of(((f"question {number}", j) for j in range(asked // BLOCK_TOKENS)), shared)
        jobs.append(Job(number, at_s, len(shared) * BLOCK_TOKENS + asked, _length(rng, 200), own))
    return Workload("system-prompts", jobs, fleet(setting.speeds))


def bursts(setting: Setting) -> Workload:
    """64 prompts of 4,096 equal tokens and some of their own at once, every 10 s; between them single questions."""
    rng, chains, numbers = random.Random(setting.seed), Chains(), count()
    jobs = []
    every_s, size = 10.0, 64
    quiet = replace(setting, load=max(0.5, setting.load - size / every_s))
    for at_s in _arrivals(rng, quiet):
        number, asked = next(numbers), _length(rng, 1500)
        chain = chains.of((f"question {number}", j) for j in range(asked // BLOCK_TOKENS))
        jobs.append(Job(number, at_s, asked, _length(rng, 200), chain))
    for burst in range(int(setting.seconds / every_s)):
        shared = chains.of((f"burst {burst}", j) for j in range(8))
        for _ in range(size):
            own = _length(rng, 200)
            prompt = len(shared) * BLOCK_TOKENS + own
            jobs.append(Job(next(numbers), (burst + 0.5) * every_s, prompt, _length(rng, 200), shared))
    jobs.sort(key=lambda job: job.arrival_s)
    return Workload("bursts", jobs, fleet(setting.speeds))


def many_models(setting: Setting) -> Workload:
    """Twelve models on eight servers that hold two each; demand by Zipf's law, and midway the ranks turn round."""
    rng, chains, numbers = random.Random(setting.seed), Chains(), count()
    models = [f"model-{i}" for i in range(12)]
    weights = [1 / (i + 1) for i in range(len(models))]
    jobs = []
    for at_s in _arrivals(rng, setting):
        ranked = models if at_s < setting.seconds / 2 else models[::-1]
        number, asked = next(numbers), _length(rng, 1500)
        model = rng.choices(ranked, weights)[0]
        chain = chains.of((model, number, j) for j in range(asked // BLOCK_TOKENS))
        jobs.append(Job(number, at_s, asked, _length(rng, 200), chain, model=model))
    # Each is hot somewhere, and those that are asked most at first a second time.
    places = models + models[:4]
    half = replace(setting.speeds, kv_tokens=setting.speeds.kv_tokens // 3)
    servers = []
    for i in range(8):
        hot = (places[2 * i], places[2 * i + 1])
        servers.append(ServerSpec(f"a-{i}", "a", half, hot + tuple(m for m in models if m not in hot), hot=2))
    return Workload("many-models", jobs, tuple(servers))


def mixed_gpus(setting: Setting) -> Workload:
    """Conversations on four fast servers and four of a third of their speed and memory."""
    fast, slow = setting.speeds, setting.speeds.scaled(1 / 3)
    servers = [ServerSpec(f"a-fast-{i}", "a", fast) for i in range(4)]
    servers += [ServerSpec(f"a-slow-{i}", "a", slow) for i in range(4)]
    return Workload("mixed-gpus", _conversations(setting), tuple(servers))


def zone_lost(setting: Setting) -> Workload:
    """Conversations on two zones of four servers; midway the one without the routers is gone."""
    servers = fleet(setting.speeds, 8, ("a", "b"))
    return Workload("zone-lost", _conversations(setting), servers, Loss(setting.seconds / 2, "b"))


WORKLOADS: dict[str, Callable[[Setting], Workload]] = {
    "trace": replayed,
    "sessions": sessions,
    "system-prompts": system_prompts,
    "bursts": bursts,
    "many-models": many_models,
    "mixed-gpus": mixed_gpus,
    "zone-lost": zone_lost,
    "held-out": held_out,
    **{kind: partial(made_up, kind) for kind in synthetic.KINDS},
}
# Those that need a trace's file.
OF_A_FILE = ("trace", "held-out")


def _sped(jobs: Sequence[Job], load: float) -> list[Job]:
    """The same, arriving so many a second."""
    span_s = jobs[-1].arrival_s - jobs[0].arrival_s
    speedup = load * span_s / len(jobs)
    return [replace(job, arrival_s=job.arrival_s / speedup) for job in jobs]


def _conversations(setting: Setting) -> list[Job]:
    rng, chains, numbers = random.Random(setting.seed), Chains(), count()
    jobs: list[Job] = []
    turns_mean, pause_s = 6.0, 15.0
    # Conversations begin before the time that counts, so that it starts in their midst.
    before_s = turns_mean * pause_s
    beginning = replace(setting, load=setting.load / turns_mean, seconds=setting.seconds + before_s)
    for place, start_s in enumerate(_arrivals(rng, beginning)):
        at_s, said, chain = start_s - before_s, _length(rng, 1000), chains.of(())
        for turn in count():
            prompt = said + _length(rng, 200)
            answer = _length(rng, 250)
            chain = chains.of(((place, j) for j in range(len(chain), prompt // BLOCK_TOKENS)), chain)
            said = prompt + answer
            whole = chains.of(((place, j) for j in range(len(chain), (said - 1) // BLOCK_TOKENS)), chain)
            if 0 <= at_s < setting.seconds:
                jobs.append(Job(next(numbers), at_s, prompt, answer, chain, f"session-{place}", answer_chain=whole))
            chain = whole
            at_s += answer * 0.02 + rng.expovariate(1 / pause_s)
            if turn > 60 or rng.random() < 1 / turns_mean:
                break
    jobs.sort(key=lambda job: job.arrival_s)
    return jobs


def _arrivals(rng: random.Random, setting: Setting) -> list[float]:
    """Poisson."""
    at_s, times = 0.0, []
    while (at_s := at_s + rng.expovariate(setting.load)) < setting.seconds:
        times.append(at_s)
    return times


def _length(rng: random.Random, median: int) -> int:
    """Lognormal, within what a model of 32 k takes."""
    return max(2, min(16_000, round(math.exp(rng.gauss(math.log(median), 0.8)))))
