import random
from dataclasses import replace

import pytest

from bench.routing.engine import Engine, Stream, Told
from bench.routing.job import Flight, Job
from bench.routing.speeds import Speeds
from bench.routing.timeline import Timeline

STEADY = Speeds(
    step_base_ms=10,
    step_per_stream_ms=0,
    step_per_context_token_ms=0,
    prefill_tokens_per_ms=100,
    attention_tokens=1e12,
    max_batched_tokens=2000,
    kv_tokens=100_000,
    noise=0,
    hiccup_share=0,
)


class Bench:
    """An engine on a timeline of its own, and when its streams began and ended in ms."""

    def __init__(self, speeds: Speeds = STEADY, seed: int = 1) -> None:
        self.timeline = Timeline()
        self.firsts: dict[int, float] = {}
        self.ends: dict[int, list[float]] = {}
        self.used: list[int] = []
        told = Told(self._first, self._end, lambda: self.used.append(self.engine.kv.used))
        self.engine = Engine(speeds, self.timeline, random.Random(seed), told)

    def send(self, job: Job) -> None:
        def start() -> None:
            self.engine.start(Flight(job))

        self.timeline.at(job.arrival_s, start)

    def _first(self, stream: Stream) -> None:
        assert stream.flight.job.number not in self.firsts
        self.firsts[stream.flight.job.number] = self.timeline.now_s * 1e3
        stream.flight.cached_tokens = stream.cached_tokens

    def _end(self, stream: Stream) -> None:
        self.ends.setdefault(stream.flight.job.number, []).append(self.timeline.now_s * 1e3)


def job(number: int = 0, prompt: int = 1000, output: int = 10, at_s: float = 0.0, chain: tuple[int, ...] = ()) -> Job:
    return Job(number, at_s, prompt, output, chain)


def test_alone_it_takes_its_prompts_time_and_a_step_a_token() -> None:
    bench = Bench()
    bench.send(job())
    bench.timeline.run()
    assert bench.firsts[0] == pytest.approx(20)
    assert bench.ends[0] == [pytest.approx(20 + 9 * 10)]


def test_a_long_prompt_comes_in_chunks_and_others_decode_between_them() -> None:
    bench = Bench()
    bench.send(job(0, output=100))
    bench.send(job(1, prompt=5000, at_s=0.05))
    bench.timeline.run()
    # Steps of 10 ms and up to 2,000 tokens less the one that decodes, 20 ms: three of them.
    assert bench.firsts[1] == pytest.approx(50 + 3 * 10 + 50, abs=0.1)
    assert bench.engine.counts.gaps_ms[29] + bench.engine.counts.gaps_ms[30] == 2


def test_a_cached_prefix_is_not_computed_again() -> None:
    bench = Bench()
    bench.send(job(0, prompt=1100, chain=(1, 2)))
    bench.send(job(1, prompt=1100, chain=(1, 2), at_s=1.0))
    bench.timeline.run()
    assert bench.firsts[0] == pytest.approx(21)
    assert bench.firsts[1] - 1000 == pytest.approx(10 + (1100 - 1024) / 100)
    assert bench.engine.counts.prefill_tokens == 1100 + 76


def test_a_full_cache_preempts_the_latest_and_every_stream_ends_once() -> None:
    bench = Bench(replace(STEADY, kv_tokens=2600))
    for number in range(4):
        bench.send(job(number, prompt=600, output=200))
    bench.timeline.run()
    assert bench.engine.counts.preemptions > 0
    assert sorted(bench.ends) == [0, 1, 2, 3]
    assert all(len(times) == 1 for times in bench.ends.values())
    assert bench.engine.kv.used == 0


def test_under_a_random_load_tokens_are_conserved_and_the_cache_never_overflows() -> None:
    rng = random.Random(3)
    bench = Bench(replace(STEADY, kv_tokens=30_000, max_streams=16, noise=0.1, hiccup_share=0.01))
    jobs = []
    for number in range(300):
        prompt = rng.randrange(1, 6000)
        start = rng.randrange(20) * 100
        chain = tuple(range(start, start + prompt // 512))
        jobs.append(job(number, prompt, rng.randrange(1, 300), rng.random() * 20, chain))
        bench.send(jobs[-1])
    bench.timeline.run()
    assert sorted(bench.firsts) == list(range(300))
    assert all(len(bench.ends[number]) == 1 and bench.ends[number][0] >= bench.firsts[number] for number in range(300))
    assert bench.engine.counts.tokens >= sum(each.output_tokens for each in jobs)
    if not bench.engine.counts.preemptions:
        assert bench.engine.counts.tokens == sum(each.output_tokens for each in jobs)
    assert bench.engine.streams == 0
    assert bench.engine.kv.used == 0
    assert bench.engine.meter.waiting_prompt_tokens == 0
    assert 0 <= min(bench.used) and max(bench.used) <= 30_000


def test_what_a_dead_server_had_goes_on_elsewhere_with_what_was_emitted() -> None:
    bench = Bench()
    bench.send(job(0, output=100))
    bench.timeline.run(until_s=0.0555)
    (lost,) = bench.engine.die()
    # The first after 20 ms, then one each 10 ms.
    assert lost.flight.emitted == 4
    bench.timeline.run()
    assert bench.ends == {}


def test_the_seed_decides() -> None:
    def ends(seed: int) -> dict[int, list[float]]:
        bench = Bench(replace(STEADY, noise=0.1, hiccup_share=0.1), seed)
        for number in range(20):
            bench.send(job(number, at_s=number * 0.01))
        bench.timeline.run()
        return bench.ends

    assert ends(1) == ends(1) != ends(2)
