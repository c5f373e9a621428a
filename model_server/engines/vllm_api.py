"""vLLM's interfaces that Stoker uses, and where its releases from 0.26 to 0.32 differ. No other file of the server's
own process imports vLLM, but for `vllm_facts`, which reads what a started engine is.

AsyncLLM's own methods are steady; stat loggers, the input's form, `propagate_error` and the configs read here are not
(docs/adr/0021). Apply `vllm_settings.environment` before importing this module.
"""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import vllm
import vllm.envs
import zmq
from vllm import SamplingParams
from vllm.config import KVEventsConfig
from vllm.distributed.kv_events import KVEventBatch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt, tokens_input
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path
from vllm.outputs import RequestOutput
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import StatLoggerBase

from model_server.engines.vllm_resume_core import PROBE, REPLAY_V1, REPLAY_V2

__all__ = [
    "AsyncLLM",
    "EngineDeadError",
    "EngineGenerateError",
    "LoRARequest",
    "RepetitionDetectionParams",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
]

try:
    from vllm.exceptions import VLLMClientError
except ImportError:  # 0.26: what is wrong with a request is a ValueError.
    VLLMClientError = ValueError

try:  # 0.26's V2 runner has no logits processors.
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as _V2Processor
except ImportError:
    _V2Processor = None

# What vLLM raises for a request it does not take.
REFUSALS: tuple[type[Exception], ...] = (VLLMClientError, ValueError)

# What `record` of a stat logger is called with: the scheduler's stats, absent in some steps.
OnStep = Callable[[Any], None]


def version() -> str:
    """The installed vLLM's version."""
    return str(vllm.__version__)


def sampling_fields() -> frozenset[str]:
    """The names of the installed vLLM's sampling parameters."""
    return frozenset(SamplingParams.__struct_fields__)


def start(arguments: Mapping[str, Any], on_step: OnStep) -> AsyncLLM:
    """Load a model; blocks until it can generate. Arguments that the installed vLLM lacks are left out if None.

    Raises whatever vLLM raises. The calling thread must live as long as the engine (parent_death).
    """
    config = _config(arguments)
    # Which kind depends on the runner, which depends on the rest. Given beforehand, they would decide the runner.
    if (processor := _replay_processor(config)) is not None:
        config.model_config.logits_processors = [processor]
    # No default stat loggers: they print. With ours alone, stats are made and nothing is printed.
    return AsyncLLM.from_vllm_config(
        config,
        stat_loggers=[_stat_logger(on_step)],
        disable_log_stats=True,
        # A request's log line has its prompt.
        enable_log_requests=False,
    )


def start_plain(arguments: Mapping[str, Any]) -> AsyncLLM:
    """The same with nothing of ours in it: what a server is held against. Blocks; raises whatever vLLM raises."""
    return AsyncLLM.from_vllm_config(_config(arguments), disable_log_stats=True, enable_log_requests=False)


def _config(arguments: Mapping[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(AsyncEngineArgs)}
    missing = {key for key, value in arguments.items() if key not in known and value is not None}
    if missing:
        raise ValueError(f"vLLM {version()} has no setting {', '.join(sorted(missing))}: remove it")
    return AsyncEngineArgs(
        **{key: value for key, value in arguments.items() if value is not None}
    ).create_engine_config()


def generate(
    llm: AsyncLLM,
    prompt_token_ids: Sequence[int],
    sampling: SamplingParams,
    request_id: str,
    *,
    cache_salt: str | None,
    priority: int,
    trace_headers: Mapping[str, str] | None,
    lora: LoRARequest | None = None,
) -> AsyncGenerator[RequestOutput, None]:
    """One request's outputs."""
    stream: AsyncGenerator[RequestOutput, None] = llm.generate(
        _prompt(prompt_token_ids, cache_salt, off_loop=sampling.structured_outputs is not None),
        sampling,
        request_id,
        lora_request=lora,
        priority=priority,
        trace_headers=trace_headers,
    )
    return stream


def on_request_added(llm: AsyncLLM, detokenizer_of: Callable[[str], Any]) -> None:
    """Have requests go on with detokenizers of ours, by the ids they came with; None leaves vLLM its own."""
    processor = llm.output_processor
    add = processor.add_request

    def add_request(request: Any, *arguments: Any, **named: Any) -> None:
        add(request, *arguments, **named)
        if (detokenizer := detokenizer_of(request.external_req_id)) is not None:
            state = processor.request_states[request.request_id]
            state.detokenizer = detokenizer
            # With a stream interval, deltas are cut from the detokenizer's ids.
            state.sent_tokens_offset = detokenizer.num_output_tokens()

    processor.add_request = add_request


def detokenizer(llm: AsyncLLM, request_id: str, prompt_token_ids: Sequence[int], sampling: SamplingParams) -> Any:
    """A detokenizer as vLLM makes it for a request. Completes `sampling` with the model's end-of-text tokens."""
    sampling.update_from_generation_config(
        llm.input_processor.generation_config_fields, llm.input_processor.renderer.get_eos_token_id()
    )
    request = SimpleNamespace(
        request_id=request_id,
        prompt_token_ids=list(prompt_token_ids),
        prompt_embeds=None,
        sampling_params=sampling,
    )
    tokenizer = llm.output_processor.tokenizer if sampling.detokenize else None
    return IncrementalDetokenizer.from_new_request(tokenizer, request)


async def restores(llm: AsyncLLM) -> bool:
    """Whether the engine core takes emitted ids as output: whether vllm_resume_core is at work there."""
    try:
        return bool(await llm.engine_core.call_utility_async(PROBE))
    except Exception:  # Whatever vLLM makes of a method that it does not have.
        return False


def replays(llm: AsyncLLM) -> bool:
    """Whether the engine forces emitted ids."""
    return _replay_processor(llm.vllm_config) is not None


def _replay_processor(config: Any) -> str | None:
    if config.speculative_config is not None:
        return None
    if not getattr(config, "use_v2_model_runner", False):
        return REPLAY_V1
    return REPLAY_V2 if _V2Processor is not None else None


async def sleep(llm: AsyncLLM) -> None:
    """Weights to host memory; the KV cache is dropped, and what is cached in it forgotten."""
    # The cache's blocks keep their hashes through a sleep, and would be taken for what they held.
    if not await llm.reset_prefix_cache():
        raise RuntimeError("the prefix cache cannot be reset: something still runs")
    await llm.sleep(1)


async def wake(llm: AsyncLLM) -> None:
    """Weights and an empty KV cache back on the GPU."""
    await llm.wake_up()


def adapter_folder(source: str) -> str:
    """The folder of an adapter, fetched if `source` is a hub id. Blocks; not for the loop. Raises whatever fails."""
    return str(get_adapter_absolute_path(source))


async def add_lora(llm: AsyncLLM, lora: LoRARequest) -> None:
    """Load an adapter between two steps of the engine. Raises whatever vLLM raises."""
    if not await llm.add_lora(lora):
        raise RuntimeError("vLLM says that it is loaded already")


async def remove_lora(llm: AsyncLLM, lora: LoRARequest) -> None:
    """Let go of an adapter, behind what was aborted before. Raises whatever vLLM raises."""
    if not await llm.remove_lora(lora.lora_int_id):
        raise RuntimeError("vLLM does not have it")


def kv_events(endpoint: str) -> KVEventsConfig:
    """The setting that makes an engine tell there what comes into its prefix cache and leaves it."""
    return KVEventsConfig(enable_kv_cache_events=True, publisher="zmq", endpoint=endpoint)


class KvSubscriber:
    """Implements `vllm_kv_events.Subscriber` for an endpoint."""

    def __init__(self, endpoint: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.set_hwm(0)
        self._socket.subscribe(b"")
        self._socket.connect(endpoint)
        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)

    def take(self) -> tuple[int, list[Any]] | None:
        """See Subscriber."""
        try:
            _, number, batch = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return int.from_bytes(number, "big"), self._decoder.decode(batch).events

    def close(self) -> None:
        """Idempotent."""
        self._socket.close(linger=0)


def fail_streams(llm: AsyncLLM) -> None:
    """End every stream that still runs with EngineDeadError: a shutdown alone leaves them waiting for ever."""
    llm.output_processor.propagate_error(EngineDeadError())


def shut_down(llm: AsyncLLM) -> None:
    """End the engine's processes and close its sockets. Blocks until the loop has closed them; not for the loop."""
    llm.shutdown()
    # vLLM leaves this to the garbage collector, which complains of it.
    llm.engine_core.resources.ctx.term()


def settle_environment() -> None:
    """Its variables are read once from here on, as vLLM's own processes do: each token's statistics ask for one."""
    enable = getattr(vllm.envs, "enable_envs_cache", None)
    if enable is not None:
        enable()


def _stat_logger(on_step: OnStep) -> Callable[..., StatLoggerBase]:
    class Steps(StatLoggerBase):  # type: ignore[misc]  # vLLM is not followed by mypy, so its classes are Any.
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            """Nothing to set up."""

        def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
            on_step(scheduler_stats)

        def log_engine_initialized(self) -> None:
            """Nothing to say."""

    return Steps


def _prompt(token_ids: Sequence[int], cache_salt: str | None, *, off_loop: bool) -> Any:
    """A prompt for `generate`.

    Newer releases work on a plain TokensPrompt in a thread, and on a rendered input on the loop. The thread costs more
    than the work does, but for the grammars of structured outputs, which can take seconds to check.
    """
    ids = list(token_ids)
    if not off_loop:
        return tokens_input(ids, cache_salt=cache_salt)
    return TokensPrompt(prompt_token_ids=ids, **({"cache_salt": cache_salt} if cache_salt else {}))
