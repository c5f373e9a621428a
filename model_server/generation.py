"""One request's life on the server: validate, encode, run on the engine, answer in parts, account."""

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context

from discovery.endpoint import Endpoint
from model_server.cached_prompt import CachedPrompt
from model_server.direct import DirectStream, DirectStreams
from model_server.engine import (
    DeviceLost,
    Engine,
    EngineDead,
    EngineError,
    EngineInfo,
    EngineOutput,
    EngineRefused,
    ResumeMode,
)
from model_server.fanout import relay
from model_server.meter import Meter, SequenceMeter
from model_server.metrics import ServerMetrics
from model_server.parts import add_delta, duration, started
from model_server.prefixes import CachedPrefixes
from model_server.progress import Progress
from model_server.residency import move
from model_server.residency.held import Held
from model_server.residency.models import Models
from model_server.resume import exact_modes, resume_mode
from model_server.seam import Seam
from model_server.sequences import sequences
from model_server.tickets import TicketCheck
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common import logs, tracing
from stoker_common.failure import first_refusal
from stoker_common.refusal import Code, Refusal, invalid, unavailable, unimplemented
from stoker_common.resuming import MODES, Exactness, Mode, continuation
from stoker_common.tracing import Tracing
from stoker_common.validate import check_fits, check_generation

log = logging.getLogger(__name__)

Write = Callable[[inference_pb2.GenerateStreamResponse], Awaitable[None]]


class Generator:
    """What all requests of a server share."""

    def __init__(
        self,
        *,
        models: Models,
        metrics: ServerMetrics,
        endpoint: Callable[[], Endpoint],
        traces: Tracing,
        tickets: TicketCheck,
        direct: DirectStreams,
    ) -> None:
        self.models = models
        self.metrics = metrics
        self.endpoint = endpoint
        self._traces = traces
        self._tickets = tickets
        self._direct = direct
        self._serial = itertools.count(1)

    async def serve(
        self,
        generation: generation_pb2.Generation,
        write: Write,
        *,
        remaining_s: float | None,
        parent: Context,
        progress: Progress | None = None,
        ticket: bytes = b"",
    ) -> None:
        """Serve one request: hand its parts to `write` until it has finished. Raises Refusal.

        `remaining_s` is what the caller's deadline leaves, None if there is none. Cancelling takes the request off the
        engine at once. `progress` counts the engine's outputs, for who watches. `ticket` came along to let it in.
        """
        with self._direct.stream(self._tickets.admit(ticket, generation)) as direct:
            await self._serve(
                generation, write if direct is None else _telling(write, direct), remaining_s, parent, progress, direct
            )

    async def _serve(
        self,
        generation: generation_pb2.Generation,
        write: Write,
        remaining_s: float | None,
        parent: Context,
        progress: Progress | None,
        direct: DirectStream | None,
    ) -> None:
        request_id = generation.request_id or uuid.uuid4().hex
        run = _Run(self, generation, request_id, f"{request_id}.{next(self._serial)}", write, progress or Progress())
        outcome = "UNKNOWN"
        with (
            logs.bound(request_id=request_id),
            self._traces.span("server.generate", parent=parent, kind=trace.SpanKind.SERVER) as span,
        ):
            try:
                check_generation(generation)
                held = self.models.find(generation.model, "generation.model")
                run.model = held.name
                async with held.admission.request(remaining_s, sequences=generation.sampling.n or 1) as entry:
                    if direct is not None:
                        direct.runs(entry)
                    async with self.models.use(held, remaining_s, run.wait):
                        await run.run(_on(held), self._traces)
                outcome = "OK"
            except asyncio.CancelledError:
                # gRPC cancels as well when the deadline passes, and may be a moment ahead of our own timer.
                late = remaining_s is not None and time.monotonic() - run.began >= remaining_s
                outcome = Code.DEADLINE_EXCEEDED.name if late else Code.CANCELLED.name
                raise
            except Exception as error:
                refusal = _refusal(error)
                outcome = refusal.code.name if refusal else Code.INTERNAL.name
                if refusal is None or refusal is error:
                    raise
                raise refusal from error
            finally:
                self._account(run, outcome, span)

    def _account(self, run: "_Run", outcome: str, span: trace.Span) -> None:
        self.metrics.request_ended(run.model, outcome)
        ttft_s, itl_s, queue_s = run.ttft_s, run.itl_s, run.queue_s
        prompt, cached, completion = len(run.prompt_token_ids), run.cached_tokens, run.completion_tokens
        self.metrics.generation_ended(
            run.model, prompt=prompt, cached=cached, completion=completion, ttft_s=ttft_s, itl_s=itl_s, queue_s=queue_s
        )
        total_ms = round((time.monotonic() - run.began) * 1000.0, 1)
        facts: dict[str, str | int | float] = {
            "outcome": outcome,
            "model": run.model,
            "prompt_tokens": prompt,
            "cached_tokens": cached,
            "completion_tokens": completion,
            "total_ms": total_ms,
        }
        if ttft_s is not None:
            facts["ttft_ms"] = round(ttft_s * 1000.0, 1)
        if queue_s is not None:
            facts["queue_ms"] = round(queue_s * 1000.0, 1)
        log.info("request ended", extra=facts)
        if span.is_recording():
            span.set_attributes({f"stoker.{key}": value for key, value in facts.items()})
            span.set_attribute("stoker.request_id", run.request_id)


@dataclass(frozen=True, slots=True)
class _On:
    """What a request runs on."""

    engine: Engine
    info: EngineInfo
    meter: Meter
    cache: CachedPrefixes | None


def _on(held: Held) -> _On:
    if held.engine is None or held.info is None:
        raise EngineDead("the model has no engine")
    return _On(held.engine, held.info, held.meter, held.cache)


class _Run:
    """One request on the engine, and what is known of it so far."""

    def __init__(
        self,
        shared: Generator,
        generation: generation_pb2.Generation,
        request_id: str,
        engine_id: str,
        write: Write,
        progress: Progress,
    ) -> None:
        self.began = time.monotonic()
        self.request_id = request_id
        self.model = ""  # until it is known to be here
        self.prompt_token_ids: Sequence[int] = ()
        self.cached_tokens = 0
        self.queue_s: float | None = None
        self.prefill_s: float | None = None
        self._endpoint = shared.endpoint
        self._numerics_class = ""
        self._exactness: Exactness = inference_pb2.EXACTNESS_UNSPECIFIED
        self._ready_s = 0.0
        self._generation = generation
        self._engine_id = engine_id
        self._write = write
        self._progress = progress
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
        await self._write(part)

    async def run(self, on: _On, traces: Tracing) -> None:
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
            self._cached = CachedPrompt(on.cache, generation, self.model)
        headers = dict(tracing.inject())
        with traces.span("engine.generate") as span:
            requests = sequences(generation, self._engine_id, tuple(ids), max_tokens, headers, mode)
            self._unfinished = len(requests)
            self._meters = {index: on.meter.begin(len(ids)) for index in requests}
            try:
                if requests:
                    await relay(on.engine, requests, self._meters, self._emit)
                else:
                    # Its last token had come; only its end had not.
                    await self._emit([(0, EngineOutput("", ()))])
            finally:
                for meter in self._meters.values():
                    meter.end()
                if span.is_recording():
                    span.set_attributes(self._attributes())

    async def _emit(self, batch: Sequence[tuple[int, EngineOutput]]) -> None:
        # Once a token and stream: whatever can be done once a request is done elsewhere.
        self._progress.outputs += 1
        response = inference_pb2.GenerateStreamResponse()
        if not self._started:
            self._start(response, batch[0][1])
        cached = self._cached
        for index, output in batch:
            if cached is not None:
                cached.output(output)
            if output.finish_reason:
                self._unfinished -= 1
            rest = self._seams[index].cut(output) if index in self._seams else output
            if rest is not None and (rest.token_ids or rest.text or rest.finish_reason):
                add_delta(response, index, rest)
        if not self._unfinished:
            self._finish(response)
        if response.deltas or response.HasField("started") or response.HasField("finished"):
            await self._write(response)

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


def _telling(write: Write, direct: DirectStream) -> Write:
    """`write`, and the router that reserved the stream hears how it starts and how it finishes."""

    def tell(part: inference_pb2.GenerateStreamResponse) -> Awaitable[None]:
        if part.HasField("started"):
            direct.started(part.started)
        if part.HasField("finished"):
            direct.finished(part.finished)
        return write(part)

    return tell


def _refusal(error: Exception) -> Refusal | None:
    """What the caller is told of `error`; None for what nobody foresaw."""
    refusal = first_refusal(error)
    if refusal is not None:
        return refusal
    if isinstance(error, EngineRefused):
        make = unimplemented if error.unsupported else invalid
        return make(f"generation.{error.field}", str(error))
    if isinstance(error, DeviceLost):
        return unavailable(str(error), reason="DEVICE_LOST")
    if isinstance(error, EngineDead):
        return unavailable(f"the engine died: {error}", reason="ENGINE_DEAD")
    if isinstance(error, EngineError) and error.retryable:
        return unavailable(f"the engine failed: {error}", reason="ENGINE_FAILED")
    return None
