"""What vLLM's own processes need in order to go on with an output that another engine began.

A `vllm.general_plugins` entry point, and the logits processors that vLLM loads by name. A request brings emitted ids
in its `extra_args`:

- RESTORE: the request enters the scheduler with them as its *output*, as if it had been preempted after computing them.
  One prefill then rebuilds the cache, and the scheduler counts tokens from there. The V2 runner takes prompt and output
  from the scheduler and keys its noise by (seed, position), so nothing else is needed. The V1 runner keeps requests
  itself and believes a new one to have no output: it is given the ids, and the request's generator is put where as many
  draws would have left it. The grammar of a structured output takes the ids in as soon as it is compiled.
- REPLAY: they are forced, one by one, by a logits processor; vLLM's speculative decoding takes none.

These are vLLM's internals, of 0.26 and 0.32 (docs/adr/0026); `restores` tells the server whether they were there.
"""

import functools
import logging
import multiprocessing
from typing import Any

RESTORE_KEY = "stoker_restore"
REPLAY_KEY = "stoker_replay"
# Called by name through the engine core's utilities.
PROBE = "stoker_restores"
# By vLLM's runner, what to give as its `logits_processors`.
REPLAY_V1 = "model_server.engines.vllm_replay_v1:ForceEmitted"
REPLAY_V2 = "model_server.engines.vllm_replay_v2:ForceEmitted"

_log = logging.getLogger(__name__)


def register() -> None:
    """Prepare one of vLLM's processes. Does nothing in the server itself, which no `multiprocessing` started."""
    if multiprocessing.parent_process() is None:
        return
    try:
        _install()
    except (ImportError, AttributeError) as error:
        # The server finds PROBE missing and does not offer RESTORE.
        _log.warning("this vLLM cannot restore: %s", error)


def emitted_ids(sampling: Any, key: str) -> list[int]:
    """The ids that a vllm.SamplingParams brings under the key; empty if none."""
    extra = getattr(sampling, "extra_args", None)
    return list(extra.get(key) or ()) if extra else []


def _install() -> None:
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.worker.gpu_input_batch import InputBatch

    if hasattr(EngineCore, PROBE):
        return
    preprocess, create_grammar = EngineCore.preprocess_add_request, StructuredOutputManager._create_grammar
    add_to_batch = InputBatch.add_request

    @functools.wraps(preprocess)
    def preprocess_add_request(self: Any, request: Any) -> Any:
        made, wave = preprocess(self, request)
        if emitted := emitted_ids(made.sampling_params, RESTORE_KEY):
            made.append_output_token_ids(emitted)
            # To the scheduler: more than the prompt may be in the cache. It tells of no cached tokens then.
            made.num_preemptions = 1
        return made, wave

    @functools.wraps(create_grammar)
    def _create_grammar(self: Any, request: Any) -> Any:
        grammar = create_grammar(self, request)
        emitted = emitted_ids(request.sampling_params, RESTORE_KEY)
        if emitted and not grammar.accept_tokens(request.request_id, emitted):
            raise ValueError("the emitted ids do not have the form that the request asks for")
        return grammar

    @functools.wraps(add_to_batch)
    def add_request(self: Any, request: Any) -> Any:
        # Once only: a request that was preempted comes here again, with an output.
        if not request.output_token_ids and (emitted := emitted_ids(request.sampling_params, RESTORE_KEY)):
            request.output_token_ids = emitted
            if request.generator is not None:
                _advance(request.generator, len(emitted), self.vocab_size)
        return add_to_batch(self, request)

    EngineCore.preprocess_add_request = preprocess_add_request
    StructuredOutputManager._create_grammar = _create_grammar
    InputBatch.add_request = add_request
    setattr(EngineCore, PROBE, lambda _: True)


def _advance(generator: Any, draws: int, vocabulary: int) -> None:
    """Leave a generator as the V1 sampler leaves it after so many tokens."""
    import torch

    if generator.device.type == "cpu":
        # One seed a token.
        for _ in range(draws):
            torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)
        return
    # An exponential for every entry of the vocabulary; the counter moves on by as much each time.
    start = generator.get_offset()
    torch.empty(vocabulary, device=generator.device).exponential_(generator=generator)
    generator.set_offset(start + draws * (generator.get_offset() - start))
