"""The `vllm` engine: vLLM's AsyncLLM on this event loop, its engine core in a process of its own."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from functools import partial
from typing import Any

from model_server.engine import (
    EngineDead,
    EngineError,
    EngineInfo,
    EngineLoad,
    EngineOutput,
    EngineRequest,
    ResumeMode,
    Take,
)
from model_server.engines import vllm_api, vllm_resume, vllm_warmup
from model_server.engines.vllm_adapters import VllmAdapters
from model_server.engines.vllm_arguments import arguments
from model_server.engines.vllm_facts import facts_of
from model_server.engines.vllm_keeper import Keeper
from model_server.engines.vllm_kv_events import KvEvents
from model_server.engines.vllm_output import EngineFailed, engine_output
from model_server.engines.vllm_prompt import PromptEncoder
from model_server.engines.vllm_refusal import refuse_foreign, refused
from model_server.engines.vllm_sampling import Abilities, sampling_params
from model_server.engines.vllm_settings import VllmSettings
from model_server.engines.vllm_stats import StepStats
from model_server.engines.vllm_tap import StepTap
from model_server.handing import generated
from stoker.v1 import generation_pb2, inference_pb2


class VllmEngine:
    """Implements `model_server.engine.Engine`. Apply `vllm_settings.environment` before this module is imported."""

    def __init__(self, settings: VllmSettings) -> None:
        self._settings = settings.resolved()
        self._stats = StepStats()
        self._streams = 0
        self._keeper: Keeper | None = None
        self._llm: Any = None
        self._prompts: PromptEncoder | None = None
        self._info: EngineInfo | None = None
        self._abilities: Abilities | None = None
        self._resuming: vllm_resume.Limits | None = None
        self._openings: vllm_resume.Openings | None = None
        self._tap: StepTap | None = None
        self._adapters: VllmAdapters | None = None
        self._kv_events: KvEvents | None = None
        self._asleep = False
        self._stopped = False

    async def start(self) -> None:
        """Load the model; the loop stays free meanwhile. Raises EngineError."""
        if self._keeper is not None or self._stopped:
            raise EngineError("an engine starts once: make another")
        settings = self._settings
        if not settings.is_folder and settings.model.startswith((".", "/", "~")):
            raise EngineError(f"no folder {settings.model!r}: set model to a Hugging Face folder or a hub id")
        told = arguments(settings)
        if settings.kv_events:
            self._kv_events = KvEvents(vllm_api.KvSubscriber)
            told["kv_events_config"] = vllm_api.kv_events(self._kv_events.endpoint)
        self._keeper = Keeper(told, self._stepped)
        try:
            self._llm = await self._keeper.llm()
        except Exception as error:
            raise EngineError(
                f"vLLM could not load {settings.model!r}: {type(error).__name__}: {error}. "
                "Its own log, on standard error, says more; less memory: vllm_max_model_len, vllm_kv_cache_memory_bytes"
            ) from error
        vllm_api.settle_environment()
        facts = facts_of(self._llm)
        # Copies the tokenizer: half a second in which the loop would keep other models' streams waiting.
        self._prompts = await asyncio.to_thread(PromptEncoder, self._llm.get_tokenizer(), facts.max_model_tokens)
        self._abilities = Abilities(vllm_api.sampling_fields(), facts.v2_runner, facts.thinking, facts.vocabulary)
        modes = [ResumeMode.PREFILL]
        if vllm_api.replays(self._llm):
            modes.append(ResumeMode.REPLAY)
        if await vllm_api.restores(self._llm):
            modes.append(ResumeMode.RESTORE)
        self._resuming = vllm_resume.Limits(tuple(modes), facts.vocabulary, facts.max_model_tokens)
        self._openings = vllm_resume.Openings(self._llm)
        self._tap = StepTap(self._llm)
        self._adapters = VllmAdapters(self._llm, settings.max_adapters)
        self._info = EngineInfo(
            engine="vllm",
            version=vllm_api.version(),
            model=settings.name,
            max_model_tokens=facts.max_model_tokens,
            vocabulary=facts.vocabulary,
            max_streams=facts.max_streams,
            kv_tokens=facts.kv_tokens,
            step_tokens=facts.step_tokens,
            block_tokens=facts.block_tokens,
            accelerator=facts.accelerator,
            accelerator_count=facts.accelerator_count,
            accelerator_memory_bytes=facts.accelerator_memory_bytes,
            numerics_class=";".join(f"{key}={value}" for key, value in facts.numerics.items()),
            resume_modes=tuple(modes),
            exact_modes=vllm_resume.exact(modes, on_cpu=settings.on_cpu, dtype=facts.numerics.get("dtype", "")),
            sleeps=facts.sleeps,
            tells_dropped=settings.kv_events,
            max_adapters=settings.max_adapters,
        )
        if not settings.on_cpu:  # where nothing is compiled at first use
            await vllm_warmup.warm_up(self)

    @property
    def info(self) -> EngineInfo:
        """What the engine is. Raises EngineError before `start`."""
        if self._info is None:
            raise EngineError("the engine has not started: await start() first")
        return self._info

    async def encode(self, generation: generation_pb2.Generation) -> list[int]:
        """The prompt's token ids, made off the loop. Raises EngineRefused, EngineDead after a stop."""
        self._running()
        if self._prompts is None:
            raise EngineError("the engine has not started: await start() first")
        return await self._prompts.encode(generation)

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        """One sequence, a step at a time; closing the generator aborts it. Raises EngineRefused, EngineDead."""
        return generated(self.run, request)

    async def run(self, request: EngineRequest, take: Take) -> None:
        """See Engine.run. Raises EngineRefused, EngineDead."""
        self._running()
        if self._asleep:
            raise EngineError("the engine sleeps")
        refuse_foreign(request.prompt_token_ids, self.info)
        with self._held_adapters().using(request.adapter) as lora:
            if request.emitted_token_ids:
                await self._resume(request, lora, take)
            else:
                await self._run(request, lora, take)

    async def _resume(self, request: EngineRequest, lora: Any, take: Take) -> None:
        """Go on with what was emitted elsewhere: first that, then what is new."""
        llm, limits, openings, abilities = self._running(), self._resuming, self._openings, self._abilities
        if limits is None or openings is None or abilities is None:
            raise EngineError("the engine has not started: await start() first")
        vllm_resume.refuse(request, limits)
        opening: EngineOutput | None = None
        if request.resume_mode is not ResumeMode.REPLAY:
            original = sampling_params(request, abilities)
            detokenizer = vllm_api.detokenizer(llm, request.request_id, request.prompt_token_ids, original)
            opening = vllm_resume.opening(request, detokenizer, original, limits)
            if opening.finish_reason != inference_pb2.FINISH_REASON_UNSPECIFIED:
                take(opening)
                return
            openings.add(request.request_id, detokenizer)
        continued = vllm_resume.Continued(request, opening, take)
        try:
            await self._run(vllm_resume.asked(request), lora, continued.take, vllm_resume.extra_args(request))
        finally:
            openings.forget(request.request_id)

    async def _run(
        self, request: EngineRequest, lora: Any, take: Take, extra_args: dict[str, list[int]] | None = None
    ) -> None:
        llm, tap = self._running(), self._tap
        if self._abilities is None or tap is None:
            raise EngineError("the engine has not started: await start() first")
        sampling = sampling_params(request, self._abilities)
        sampling.extra_args = extra_args
        stream = vllm_api.generate(
            llm,
            request.prompt_token_ids,
            sampling,
            request.request_id,
            cache_salt=request.cache_salt or None,
            priority=request.priority,
            # Without a place to send spans to, vLLM would only warn.
            trace_headers=request.trace_headers if self._settings.otlp_traces_endpoint else None,
            lora=lora,
        )
        self._streams += 1
        convert = partial(engine_output, request=request, handed_s=time.monotonic())
        with tap.sink(request.request_id, convert, take) as sink:
            try:
                # Outputs go to the sink; vLLM's own way brings what ends the request.
                async for _ in stream:
                    pass
            except vllm_api.EngineDeadError as error:
                raise EngineDead("vLLM's engine process is gone: its own log, on standard error, says why") from error
            except vllm_api.EngineGenerateError as error:
                if sink.failure is not None:
                    raise sink.failure from None
                if not sink.begun and isinstance(error.__cause__, vllm_api.REFUSALS):
                    raise refused(error.__cause__, request) from error
                raise EngineFailed(f"vLLM failed on the request: {error.__cause__ or error}") from error
            except vllm_api.REFUSALS as error:
                if sink.begun:
                    raise EngineFailed(f"vLLM failed on the request: {error}") from error
                raise refused(error, request) from error
            finally:
                self._streams -= 1
                await stream.aclose()

    def load(self) -> EngineLoad:
        """The figures of the latest step."""
        return self._stats.load(self._streams)

    def dropped(self) -> Sequence[int]:
        """The blocks that left the prefix cache since the last time; nothing unless `kv_events` is set."""
        return self._kv_events.dropped() if self._kv_events is not None else ()

    async def check(self) -> None:
        """Raise EngineDead if vLLM knows its engine process dead, or the engine was stopped."""
        if self._running().errored:
            raise EngineDead("vLLM's engine process is gone: its own log, on standard error, says why")

    async def sleep(self) -> None:
        """Weights to host memory (vLLM's level 1), the KV cache dropped. Raises EngineError."""
        llm, adapters = self._running(), self._held_adapters()
        busy = self._streams > 0 or adapters.loading
        if not self.info.sleeps or self._asleep or busy:
            why = "runs something" if busy else "sleeps already" if self._asleep else "cannot sleep"
            raise EngineError(f"the engine {why}")
        self._asleep = True
        await self._told("drop its adapters", adapters.drop_all())
        await self._told("sleep", vllm_api.sleep(llm))

    async def wake(self) -> None:
        """Weights back to the GPU, and an empty KV cache. Raises EngineError."""
        llm = self._running()
        if not self._asleep:
            raise EngineError("the engine does not sleep")
        await self._told("wake", vllm_api.wake(llm))
        self._asleep = False

    async def add_adapter(self, name: str, source: str) -> None:
        """See Engine.add_adapter. The engine loads it between two steps, from files that were read before."""
        await self._told(f"load the adapter {name!r}", self._awake_adapters().add(name, source))

    async def drop_adapter(self, name: str) -> None:
        """See Engine.drop_adapter."""
        await self._told(f"drop the adapter {name!r}", self._awake_adapters().drop(name))

    def _awake_adapters(self) -> VllmAdapters:
        adapters = self._held_adapters()
        if self._asleep:
            raise EngineError("the engine sleeps")
        return adapters

    def _held_adapters(self) -> VllmAdapters:
        self._running()
        if self._adapters is None:
            raise EngineError("the engine has not started: await start() first")
        return self._adapters

    async def _told(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except EngineError:
            raise
        except vllm_api.EngineDeadError as error:
            raise EngineDead("vLLM's engine process is gone: its own log, on standard error, says why") from error
        except Exception as error:
            raise EngineError(f"vLLM could not {what}: {type(error).__name__}: {error}") from error

    async def stop(self) -> None:
        """End the engine and its processes; streams that still run raise EngineDead. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if self._prompts is not None:
            self._prompts.close()
        if self._kv_events is not None:
            self._kv_events.close()
        if self._keeper is None:
            return
        if self._llm is not None:
            vllm_api.fail_streams(self._llm)
        await asyncio.shield(asyncio.to_thread(self._keeper.end))
        # The last references: what is still alive at the interpreter's exit cannot shut down in order.
        self._llm = self._keeper = None

    def _stepped(self, scheduler_stats: Any) -> None:
        # In this order: whoever is handed an output finds its step counted.
        self._stats.record(scheduler_stats)
        if self._tap is not None:
            self._tap.hand_over()

    def _running(self) -> Any:
        if self._stopped:
            raise EngineDead("the engine was stopped")
        if self._llm is None:
            raise EngineError("the engine has not started: await start() first")
        return self._llm
