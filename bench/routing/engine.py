"""A simulated engine on virtual time: continuous batching, chunked prefill, a budget of tokens a step, preemption.

As vLLM's V1 scheduler: streams that decode go first, then prompts in order within what is left of the budget; when the
cache is full, the latest gives its tokens up and computes them anew. A step costs what begins, computes or ends in it
and not what merely goes on: a stream's end is known from the step in which it joined.
"""

import heapq
import math
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.routing.gauge import Gauge
from bench.routing.job import BLOCK_TOKENS, Flight
from bench.routing.kv import Kv
from bench.routing.speeds import Speeds
from bench.routing.timeline import Timeline
from discovery.endpoint import Load
from model_server.meter import Meter, SequenceMeter


@dataclass(slots=True, eq=False)
class Stream:
    """A flight's attempt on an engine. `to_compute` tokens come before its next one."""

    flight: Flight
    to_compute: int
    left: int
    meter: SequenceMeter
    computed: int = 0
    shared: int = 0
    private: int = 0
    cached_tokens: int = -1
    joined_step: int = 0
    life: int = 0
    ended: bool = False

    @property
    def chain(self) -> tuple[int, ...]:
        """Its prompt's whole blocks."""
        return self.flight.job.chain


@dataclass(slots=True)
class Told:
    """Whom an engine tells what happens, and when."""

    first: Callable[[Stream], None]
    ended: Callable[[Stream], None]
    step: Callable[[], None]


@dataclass(slots=True)
class Counts:
    """What an engine did."""

    steps: int = 0
    tokens: int = 0
    prefill_tokens: int = 0
    preemptions: int = 0
    # Gaps between tokens, by whole ms.
    gaps_ms: Counter[int] = field(default_factory=Counter)


class Engine:
    """One model on one server. `share` tells how many engines share the accelerator now."""

    def __init__(
        self,
        speeds: Speeds,
        timeline: Timeline,
        rng: random.Random,
        told: Told,
        busy: Callable[[], int] = lambda: 1,
    ) -> None:
        self.speeds = speeds
        self.kv = Kv(speeds.kv_tokens, BLOCK_TOKENS)
        self.counts = Counts()
        self.meter = Meter(timeline, lambda: len(self._decoding) + len(self._filling) >= speeds.max_streams)
        self._timeline = timeline
        self._rng = rng
        self._told = told
        self._busy = busy
        self._waiting: deque[Stream] = deque()
        self._filling: list[Stream] = []
        # In order of joining: the latest gives way first.
        self._decoding: OrderedDict[Stream, None] = OrderedDict()
        self._ends: list[tuple[int, int, int, Stream]] = []
        self._order = 0
        self._context = 0
        self._stepping = False
        self._alive = True
        self._gauge = Gauge(self.meter)

    @property
    def streams(self) -> int:
        """Streams that run or wait."""
        return len(self._waiting) + len(self._filling) + len(self._decoding)

    @property
    def stepping(self) -> bool:
        """Whether the engine computes."""
        return self._stepping

    def cached(self, chain: tuple[int, ...]) -> int:
        """Tokens of the chain that are in the cache now. No router can know this so exactly."""
        return self.kv.match(chain) * BLOCK_TOKENS

    def load(self) -> Load:
        """The load as the server would report it."""
        self._gauge.settle(self._timeline.now_s)
        return Load(
            running=len(self._filling) + len(self._decoding),
            waiting=len(self._waiting),
            kv_usage=self.kv.usage,
            utilization=1.0 if self._stepping else 0.0,
            waiting_prompt_tokens=self.meter.waiting_prompt_tokens,
            prefill_tokens_per_second=self.meter.prefill_tokens_per_second,
            itl_ms=self.meter.itl_ms,
            attention_tokens=self.meter.attention_tokens,
            context_tokens=self._context + sum(each.to_compute for each in (*self._filling, *self._waiting)),
            step_ms_per_context_token=self.meter.step_ms_per_context_token,
        )

    def start(self, flight: Flight) -> Stream:
        """A request came. What was emitted elsewhere is part of its prompt now."""
        job = flight.job
        prompt = job.prompt_tokens + flight.emitted
        stream = Stream(flight, prompt, job.output_tokens - flight.emitted, self.meter.begin(prompt))
        self._waiting.append(stream)
        self._step()
        return stream

    def die(self) -> list[Stream]:
        """The server is gone; returns what it had, with what of it had been emitted."""
        self._alive = False
        lost = [*self._waiting, *self._filling, *self._decoding]
        for stream in lost:
            out = stream.flight.job.output_tokens - stream.left
            decoded = self.counts.steps - stream.joined_step + 1 if stream in self._decoding else 0
            stream.flight.emitted = out + decoded
        self._waiting.clear()
        self._filling.clear()
        self._decoding.clear()
        return lost

    def _step(self) -> None:
        if self._stepping or not self._alive:
            return
        chunks, ms = self._plan()
        decodes = len(self._decoding)
        if not chunks and not decodes:
            return
        self._stepping = True
        speeds = self.speeds
        ms += speeds.decode_ms(decodes, self._context)
        ms *= self._busy() * math.exp(self._rng.gauss(0.0, speeds.noise))
        if self._rng.random() < speeds.hiccup_share:
            ms += speeds.hiccup_ms
        self._timeline.after(ms / 1e3, lambda: self._done(chunks, decodes, ms))

    def _plan(self) -> tuple[list[tuple[Stream, int]], float]:
        """What is computed of which prompts in the next step, and how long that takes in ms."""
        while self._decoding and not self.kv.reserve(len(self._decoding)):
            self._preempt()
        chunks: list[tuple[Stream, int]] = []
        budget, ms = self.speeds.max_batched_tokens - len(self._decoding), 0.0
        for stream in self._filling:
            count = min(stream.to_compute - stream.computed, budget)
            if count <= 0 or not self.kv.reserve(count):
                break
            ms += self._chunk(stream, count, chunks)
            budget -= count
        room = self.speeds.max_streams - len(self._filling) - len(self._decoding)
        while self._waiting and budget > 0 and room > 0 and len(chunks) == len(self._filling):
            stream = self._waiting[0]
            self._take_cached(stream)
            count = min(stream.to_compute - stream.computed, budget)
            if not self.kv.reserve(count):
                self._release(stream)
                break
            self._waiting.popleft()
            self._filling.append(stream)
            ms += self._chunk(stream, count, chunks)
            budget -= count
            room -= 1
        return chunks, ms

    def _chunk(self, stream: Stream, count: int, chunks: list[tuple[Stream, int]]) -> float:
        stream.private += count
        chunks.append((stream, count))
        self.counts.prefill_tokens += count
        return self.speeds.prefill_ms(stream.computed, count)

    def _take_cached(self, stream: Stream) -> None:
        """Hold what the cache has of it, short of its last token, which must be computed to get the next."""
        most = (stream.to_compute - 1) // BLOCK_TOKENS
        chain = stream.chain[:most]
        stream.shared = self.kv.match(chain)
        self.kv.share(chain[: stream.shared])
        stream.computed = stream.shared * BLOCK_TOKENS
        if stream.cached_tokens < 0:
            stream.cached_tokens = stream.computed

    def _done(self, chunks: list[tuple[Stream, int]], decodes: int, ms: float) -> None:
        """The step is over."""
        self._stepping = False
        if not self._alive:
            return
        counts = self.counts
        counts.steps += 1
        counts.tokens += decodes
        self._gauge.step(ms, decodes, self._context, prompts=bool(chunks))
        if decodes:
            counts.gaps_ms[int(ms)] += decodes
            self._context += decodes
        self._end_due()
        for stream, count in chunks:
            if not stream.ended:
                self._computed(stream, count)
        self._told.step()
        self._step()

    def _computed(self, stream: Stream, count: int) -> None:
        stream.computed += count
        full = min(stream.computed // BLOCK_TOKENS, len(stream.chain))
        if full > stream.shared:
            self.kv.commit(stream.chain[stream.shared : full])
            stream.private -= (full - stream.shared) * BLOCK_TOKENS
            stream.shared = full
        if stream.computed < stream.to_compute:
            return
        self._filling.remove(stream)
        self._context += stream.computed
        self._decoding[stream] = None
        stream.joined_step = self.counts.steps
        self._order += 1
        heapq.heappush(self._ends, (self.counts.steps + stream.left - 1, self._order, stream.life, stream))
        self.counts.tokens += 1
        if stream.meter.first_at is None:
            stream.meter.output(1, max(0, stream.cached_tokens), self._timeline.now_s)
            self._told.first(stream)
        self._end_due()

    def _end_due(self) -> None:
        ends, steps = self._ends, self.counts.steps
        while ends and ends[0][0] <= steps:
            _, _, life, stream = heapq.heappop(ends)
            if life == stream.life and not stream.ended:
                self._end(stream)

    def _end(self, stream: Stream) -> None:
        stream.ended = True
        self._leave_batch(stream)
        answer = stream.flight.job.answer_chain
        if answer:
            # What the answer filled up is known as well.
            fresh = answer[stream.shared :]
            self.kv.commit(fresh)
            stream.private -= len(fresh) * BLOCK_TOKENS
            self.kv.release(answer, stream.private)
        else:
            self.kv.release(stream.chain[: stream.shared], stream.private)
        stream.meter.end()
        self._told.ended(stream)

    def _leave_batch(self, stream: Stream) -> None:
        """It decodes no more. The batch's growth was reserved as a whole: its share of it becomes its own."""
        del self._decoding[stream]
        grown = self.counts.steps - stream.joined_step
        stream.private += grown
        self._context -= stream.computed + grown

    def _preempt(self) -> None:
        """The latest gives up its tokens and waits, first of all, to compute them anew."""
        stream = next(reversed(self._decoding))
        emitted = self.counts.steps - stream.joined_step + 1
        self._leave_batch(stream)
        self._release(stream)
        stream.life += 1
        stream.left -= emitted
        stream.to_compute += emitted
        self._waiting.appendleft(stream)
        self.counts.preemptions += 1

    def _release(self, stream: Stream) -> None:
        self.kv.release(stream.chain[: stream.shared], stream.private)
        stream.shared = stream.private = stream.computed = 0
