"""One request on the engine: encoded, run, answered in parts; and what is known of it so far."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from discovery.endpoint import Endpoint
from model_server.cached_prompt import CachedPrompt
from model_server.direct import DirectStream
from model_server.engine import (
    Engine,
    EngineDead,
    EngineInfo,
    EngineOutput,
    ResumeMode,
)
from model_server.fanout import relay
from model_server.meter import Meter, SequenceMeter
from model_server.out import Out
from model_server.parts import add_delta, duration, plain_part, started
from model_server.prefixes import CachedPrefixes
from model_server.progress import Progress
from model_server.residency import move
from model_server.residency.held import Held
from model_server.resume import exact_modes, resume_mode
from model_server.seam import Seam
from model_server.sequences import sequences
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common import tracing
from stoker_common.resuming import MODES, Exactness, Mode, continuation
from stoker_common.tracing import Tracing
from stoker_common.validate import check_fits


@dataclass(frozen=True, slots=True)
class On:
    """What a request runs on."""

    engine: Engine
    info: EngineInfo
    meter: Meter
    cache: CachedPrefixes | None
    adapter: str


def on(held: Held) -> On:
    """A hot model's engine. Raises EngineDead."""
    if held.engine is None or held.info is None:
        raise EngineDead("the model has no engine")
    return On(held.engine, held.info, held.meter, held.cache, "" if held.base is None else held.name)


class Run:
    """One request on the engine, and what is known of it so far."""

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        generation: generation_pb2.Generation,
        request_id: str,
        engine_id: str,
        out: Out,
        progress: Progress,
        direct: DirectStream | None = None,
    ) -> None:
        """`direct`: whoever is to hear how it starts and how it finishes."""
        self.began = time.monotonic()
        self.request_id = request_id
        self.model = ""  # until it is known to be here
        self.prompt_token_ids: Sequence[int] = ()
        self.cached_tokens = 0
        self.queue_s: float | None = None
        self.prefill_s: float | None = None
        self._endpoint = endpoint
        self._numerics_class = ""
        self._exactness: Exactness = inference_pb2.EXACTNESS_UNSPECIFIED
        self._ready_s = 0.0
        self._generation = generation
        self._engine_id = engine_id
        self._out = out
        self._progress = progress
        self._direct = direct
        self._meters: dict[int, SequenceMeter] = {}
        # Where outputs go on that began elsewhere, by index.
        self._seams = {
            output.index: Seam(len(output.token_ids), output.text_bytes) for output in generation.resume.outputs
        }
        self._mode: Mode | None = None
        self._started = False
        self._unfinished = 0
        self._cached: CachedPrompt | None = None

    async def wait(self, progress: move.Progress) -> None:
        """Tell the client what it waits for: the model is not hot yet."""
        part = inference_pb2.GenerateStreamResponse()
        part.progress.server = self._endpoint().server
        part.progress.activity = progress.activity
        part.progress.fraction = progress.fraction
        if progress.remaining_s is not None:
            part.progress.remaining.CopyFrom(duration(progress.remaining_s))
        self._out.put(part.SerializeToString(), 0)

    async def run(self, on: On, traces: Tracing) -> None:
        """Until all of its outputs have finished. Raises Refusal, EngineError. Cancelling takes it off the engine."""
        self._ready_s = time.monotonic() - self.began
        generation, info = self._generation, on.info
        self._numerics_class = info.numerics_class
        resumed = generation.HasField("resume")
        ids = generation.resume.prompt_token_ids if resumed else await on.engine.encode(generation)
        if not resumed and generation.sampling.HasField("truncate_prompt_tokens"):
            ids = ids[-generation.sampling.truncate_prompt_tokens :]
        asked = generation.sampling.max_tokens if generation.sampling.HasField("max_tokens") else None
        max_tokens = check_fits(ids, asked, info.vocabulary, info.max_model_tokens)
        self.prompt_token_ids = ids
        mode = resume_mode(generation, info) if resumed else ResumeMode.PREFILL
        if resumed:
            self._mode = MODES[mode.value]
            self._exactness = continuation(self._mode, exact_modes(info))
        if on.cache is not None:
            on.cache.dropped(on.engine.dropped())
            self._cached = CachedPrompt(on.cache, generation, self.model, ids if info.tells_dropped else (), on.adapter)
        headers = dict(tracing.inject())
        with traces.span("engine.generate") as span:
            requests = sequences(generation, self._engine_id, tuple(ids), max_tokens, headers, mode, on.adapter)
            self._unfinished = len(requests)
            self._meters = {index: on.meter.begin(len(ids)) for index in requests}
            try:
                if requests:
                    await relay(on.engine, requests, self._meters, self._take)
                else:
                    # Its last token had come; only its end had not.
                    self._take(0, EngineOutput("", ()))
            finally:
                if on.cache is not None:
                    on.cache.dropped(on.engine.dropped())
                for meter in self._meters.values():
                    meter.end()
                if span.is_recording():
                    span.set_attributes(self._attributes())

    def _take(self, index: int, output: EngineOutput) -> None:
        # Once a token and stream: whatever can be done once a request is done elsewhere.
        self._progress.outputs += 1
        if self._cached is not None:
            self._cached.output(output)
        if not self._started or output.finish_reason or output.logprobs or index in self._seams:
            self._tell(index, output)
        elif output.token_ids or output.text:
            self._out.put_plain(plain_part(index, output.text, output.token_ids), len(output.token_ids))

    def _tell(self, index: int, output: EngineOutput) -> None:
        """The same for all that is more than text and ids."""
        response = inference_pb2.GenerateStreamResponse()
        if not self._started:
            self._start(response, output)
        if output.finish_reason:
            self._unfinished -= 1
        rest = self._seams[index].cut(output) if index in self._seams else output
        if rest is not None and (rest.token_ids or rest.text or rest.finish_reason):
            add_delta(response, index, rest)
        if not self._unfinished:
            self._finish(response)
        if response.deltas or response.HasField("started") or response.HasField("finished"):
            self._out.put(response.SerializeToString(), sum(len(delta.token_ids) for delta in response.deltas))

    def _start(self, response: inference_pb2.GenerateStreamResponse, first: EngineOutput) -> None:
        self._started = True
        self.cached_tokens = first.cached_tokens
        if first.queue_ms is not None:
            self.queue_s = first.queue_ms / 1000.0
        if first.prefill_ms is not None:
            self.prefill_s = first.prefill_ms / 1000.0
        if self._cached is not None and self._unfinished:
            self._cached.began(len(self.prompt_token_ids), first.cached_tokens)
        response.started.CopyFrom(
            started(
                self._endpoint(),
                request_id=self.request_id,
                model=self.model,
                numerics_class=self._numerics_class,
                prompt_token_ids=self.prompt_token_ids,
                first=first,
            )
        )
        if self._mode is not None:
            response.started.resume_mode = self._mode
            response.started.resume_exactness = self._exactness
        if self._direct is not None:
            self._direct.started(response.started)

    def _finish(self, response: inference_pb2.GenerateStreamResponse) -> None:
        if self._cached is not None:
            self._cached.ended()
        usage = response.finished.usage
        usage.prompt_tokens = len(self.prompt_token_ids)
        usage.cached_tokens = self.cached_tokens
        usage.completion_tokens = self.completion_tokens
        timings = response.finished.timings
        if self.queue_s is not None:
            timings.queue.CopyFrom(duration(self.queue_s))
        if self.prefill_s is not None:
            timings.prefill.CopyFrom(duration(self.prefill_s))
        timings.load.CopyFrom(duration(self._ready_s))
        if self.ttft_s is not None:
            timings.ttft.CopyFrom(duration(self.ttft_s))
        if self.itl_s is not None:
            timings.itl.CopyFrom(duration(self.itl_s))
        timings.total.CopyFrom(duration(time.monotonic() - self.began))
        if self._direct is not None:
            self._direct.finished(response.finished)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated, over all outputs, each once, also those that came from elsewhere."""
        elsewhere = sum(len(output.token_ids) for output in self._generation.resume.outputs if output.finished)
        return elsewhere + sum(meter.tokens for meter in self._meters.values())

    @property
    def ttft_s(self) -> float | None:
        """From the arrival to the first token of any output."""
        firsts = [meter.first_at for meter in self._meters.values() if meter.first_at is not None]
        return min(firsts) - self.began if firsts else None

    @property
    def itl_s(self) -> float | None:
        """Mean time between tokens after the first of each output; None if no output has a second."""
        later = sum(meter.later_tokens for meter in self._meters.values())
        return sum(meter.later_s for meter in self._meters.values()) / later if later else None

    def _attributes(self) -> Mapping[str, str | int | float]:
        attributes: dict[str, str | int | float] = {
            "stoker.prompt_tokens": len(self.prompt_token_ids),
            "stoker.cached_tokens": self.cached_tokens,
            "stoker.completion_tokens": self.completion_tokens,
        }
        if self.queue_s is not None:
            attributes["stoker.queue_ms"] = self.queue_s * 1000.0
        if self.prefill_s is not None:
            attributes["stoker.prefill_ms"] = self.prefill_s * 1000.0
        if self.ttft_s is not None:
            attributes["stoker.ttft_ms"] = self.ttft_s * 1000.0
        return attributes
