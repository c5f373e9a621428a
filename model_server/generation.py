"""One request's life on the server: let in, validated, run on the engine of its model, accounted for."""

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.context import Context

from discovery.endpoint import Endpoint
from model_server.direct import DirectStream, DirectStreams
from model_server.engine import (
    DeviceLost,
    EngineDead,
    EngineError,
    EngineRefused,
)
from model_server.metrics import ServerMetrics
from model_server.out import Out
from model_server.progress import Progress
from model_server.residency.asked import asked
from model_server.residency.models import Models
from model_server.run import Run, on
from model_server.tickets import TicketCheck
from stoker.v1 import generation_pb2
from stoker_common import logs
from stoker_common.failure import first_refusal
from stoker_common.refusal import Code, Refusal, invalid, unavailable, unimplemented
from stoker_common.tracing import Tracing
from stoker_common.validate import check_generation

log = logging.getLogger(__name__)

# More than a request's way takes, but for machines that are far behind; less than anybody would tell apart.
_CLOCKS_APART_S = 0.1


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
        out: Out,
        *,
        remaining_s: float | None,
        parent: Context,
        progress: Progress | None = None,
        ticket: bytes = b"",
    ) -> None:
        """Serve one request: put its parts into `out` until it has finished. Raises Refusal.

        `remaining_s` is what the caller's deadline leaves, None if there is none. Cancelling takes the request off the
        engine at once. `progress` counts the engine's outputs, for who watches. `ticket` came along to let it in.
        """
        with self._direct.stream(self._tickets.admit(ticket, generation)) as direct:
            await self._serve(generation, out, remaining_s, parent, progress, direct)

    async def _serve(
        self,
        generation: generation_pb2.Generation,
        out: Out,
        remaining_s: float | None,
        parent: Context,
        progress: Progress | None,
        direct: DirectStream | None,
    ) -> None:
        request_id = generation.request_id or uuid.uuid4().hex
        engine_id = f"{request_id}.{next(self._serial)}"
        run = Run(self.endpoint, generation, request_id, engine_id, out, progress or Progress(), direct)
        outcome = "UNKNOWN"
        with (
            logs.bound(request_id=request_id),
            self._traces.span("server.generate", parent=parent, kind=trace.SpanKind.SERVER) as span,
        ):
            try:
                check_generation(generation)
                held = asked(self.models, generation)
                run.model = held.name
                async with held.admission.request(remaining_s, sequences=generation.sampling.n or 1) as entry:
                    if direct is not None:
                        direct.runs(entry)
                    try:
                        async with self.models.use(held, remaining_s, run.wait):
                            await run.run(on(held), self._traces)
                    except Exception:
                        # What came before goes out before how it ended.
                        await out.written()
                        raise
                    await out.written()
                outcome = "OK"
            except asyncio.CancelledError:
                late = cut_off_late(time.monotonic() - run.began, remaining_s)
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

    def _account(self, run: Run, outcome: str, span: trace.Span) -> None:
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


def cut_off_late(ran_s: float, remaining_s: float | None) -> bool:
    """Whether a request that was cancelled after so long ended by its deadline. The client cancels by its own clock,
    which began before ours: by the request's way here, and by how long it waited to be read."""
    return remaining_s is not None and ran_s >= remaining_s - min(_CLOCKS_APART_S, remaining_s / 2.0)


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
