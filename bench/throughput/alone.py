"""AsyncLLM alone, in a process of its own: `python -m bench.throughput.alone [OPTIONS] -- MODEL SERVER'S FLAGS`.

The engine arguments are those that the model server makes of the same flags; nothing else of ours is in the process:
no plugin, no stat logger, no tap. Says `ready` when it is loaded and warm; then each line of standard input asks for
a round, of which it says a line of JSON; with the input it ends.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from typing import Any

from bench.relay.cpu import used_s
from bench.relay.load import quantile
from bench.throughput import made_up
from model_server.config import CommandSettings, vllm_settings
from model_server.engines.vllm_settings import VllmSettings, environment
from stoker_common import event_loop
from stoker_common.settings import load

_WARM_TOKENS = 16


async def measure(
    settings: VllmSettings, streams: int, prompt_tokens: int, tokens: int, core_step_ms: float | None = None
) -> None:
    """Load, warm up, do as standard input says. With `core_step_ms` its engine core is made up."""
    from model_server.engines import vllm_api
    from model_server.engines.vllm_arguments import arguments
    from model_server.engines.vllm_facts import facts_of

    began_s = time.monotonic()
    llm = await asyncio.to_thread(vllm_api.start_plain, arguments(settings.resolved()))
    core = made_up.set_in(llm, core_step_ms) if core_step_ms is not None else None
    try:
        about = {"engine": f"vllm {vllm_api.version()}", "accelerator": facts_of(llm).accelerator}
        loaded_s = round(time.monotonic() - began_s, 1)
        rng = random.Random(1)
        await _round(llm, rng, streams, prompt_tokens, _WARM_TOKENS)
        _say("ready")
        while await asyncio.to_thread(sys.stdin.readline):
            row = await _round(llm, rng, streams, prompt_tokens, tokens)
            _say(json.dumps({**row, **about, "loaded_s": loaded_s}))
    finally:
        if core is not None:
            core.close()
        await asyncio.to_thread(vllm_api.shut_down, llm)


async def _round(llm: Any, rng: random.Random, streams: int, prompt_tokens: int, tokens: int) -> dict[str, object]:
    from model_server.engines import vllm_api
    from model_server.engines.vllm_facts import facts_of

    vocabulary = facts_of(llm).vocabulary
    ids = range(vocabulary // 8, vocabulary * 7 // 8)
    ttft_ms: list[float] = []

    async def one(name: str, prompt: list[int]) -> int:
        sampling = vllm_api.SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, output_kind=vllm_api.RequestOutputKind.DELTA
        )
        outputs = vllm_api.generate(llm, prompt, sampling, name, cache_salt=None, priority=0, trace_headers=None)
        came = 0
        async for output in outputs:
            if not came:
                ttft_ms.append((time.monotonic() - began_s) * 1e3)
            came += len(output.outputs[0].token_ids)
        return came

    own = [os.getpid()]
    cpu_s, began_s = used_s(own, children=False), time.monotonic()
    asked = [one(f"{rng.random()}", rng.choices(ids, k=prompt_tokens)) for _ in range(streams)]
    came = sum(await asyncio.gather(*asked))
    took_s, cpu_s = time.monotonic() - began_s, used_s(own, children=False) - cpu_s
    return {
        "streams": streams,
        "tokens": came,
        "took_s": round(took_s, 3),
        "tokens_per_s": round(came / took_s, 1),
        "ttft_p50_ms": round(quantile(ttft_ms, 0.5), 1),
        "ttft_p99_ms": round(quantile(ttft_ms, 0.99), 1),
        "server_us_per_token": round(cpu_s * 1e6 / came, 2),
        "server_cores": round(cpu_s / took_s, 2),
    }


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Parse, set vLLM's environment, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--core-step-ms", type=float, help="a made-up engine core's; default: vLLM's own computes")
    parser.add_argument("flags", nargs="*", help="of the model server, after --")
    given = parser.parse_args()
    settings = vllm_settings(load(CommandSettings, "model_server", given.flags))
    os.environ.update(environment(settings, os.environ))
    event_loop.run(measure(settings, given.streams, given.prompt_tokens, given.tokens, given.core_step_ms))


if __name__ == "__main__":
    main()
