"""One request of each kind that vLLM compiles something for at its first use, asked for before a server serves.

On GPUs the kernels for top-k and top-p, penalties and grammars are compiled when a batch first wants them. On an idle
H100 host with the kernels in Triton's cache that took 1 s, on a busy one without them more than 10 s: time in which the
engine makes no step, so that routers take its streams elsewhere and its server holds it for stuck (docs/adr/0070).
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import aclosing

from model_server.engine import Engine, EngineRefused, EngineRequest
from model_server.engines.vllm_output import EngineFailed
from stoker.v1 import generation_pb2

log = logging.getLogger(__name__)

Sampling = generation_pb2.Sampling

_TOKENS = 3
# Batches whose sizes Triton tells apart: one, and a multiple of sixteen.
_TOGETHER = 16
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_KINDS: Mapping[str, tuple[Sampling, generation_pb2.StructuredOutput | None]] = {
    "greedy": (Sampling(temperature=0), None),
    "seeded": (Sampling(temperature=1, seed=1), None),
    "top-k": (Sampling(temperature=1, top_k=40), None),
    "top-p": (Sampling(temperature=1, top_p=0.9), None),
    "top-k and top-p": (Sampling(temperature=1, top_k=40, top_p=0.9), None),
    "min-p": (Sampling(temperature=1, min_p=0.1), None),
    "penalties": (Sampling(frequency_penalty=0.5, presence_penalty=0.5, repetition_penalty=1.1), None),
    "logprobs": (Sampling(temperature=0, logprobs=2), None),
    "bias": (Sampling(temperature=0, logit_bias={1: 1.0}, bad_words=["a"], min_tokens=2), None),
    "grammar": (Sampling(temperature=0), generation_pb2.StructuredOutput(json_schema=json.dumps(_SCHEMA))),
}


async def warm_up(engine: Engine) -> tuple[str, ...]:
    """Ask for each kind alone, then for all together. Returns the kinds it refused. Raises EngineDead."""
    refused = [name for name in _KINDS if not await _ask(engine, name, 0)]
    kept = [name for name in _KINDS if name not in refused]
    together = [kept[place % len(kept)] for place in range(_TOGETHER)] if kept else []
    await asyncio.gather(*(_ask(engine, name, place) for place, name in enumerate(together, start=1)))
    return tuple(refused)


async def _ask(engine: Engine, name: str, place: int) -> bool:
    """One request to its end; whether the engine took it."""
    sampling, form = _KINDS[name]
    request = EngineRequest(
        request_id=f"warm-up-{name.replace(' ', '-')}-{place}",
        prompt_token_ids=_prompt(engine.info.vocabulary, place),
        sampling=sampling,
        max_tokens=_TOKENS,
        structured_output=form,
    )
    try:
        async with aclosing(engine.generate(request)) as outputs:
            async for _ in outputs:
                pass
    except (EngineRefused, EngineFailed) as error:
        log.warning("not warmed up", extra={"kind": name, "why": str(error)})
        return False
    return True


def _prompt(vocabulary: int, place: int) -> tuple[int, ...]:
    return tuple((place * 31 + number) % vocabulary for number in range(1, 9))
