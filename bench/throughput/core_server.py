"""A model server before a made-up engine core: `python -m bench.throughput.core_server STEP_MS FLAG...`, as its own."""

import os
import sys
from typing import Any

from bench.throughput import made_up
from model_server.__main__ import main
from model_server.config import CommandSettings, vllm_settings
from model_server.engines.vllm_settings import environment
from stoker_common.settings import load


def run(step_ms: float, flags: list[str]) -> int:
    """The server's exit code."""
    settings = vllm_settings(load(CommandSettings, "model_server", flags))
    # vLLM reads its variables when it is imported.
    os.environ.update(environment(settings, os.environ))
    from model_server.engines import vllm_api

    start = vllm_api.start

    def started(*given: Any, **named: Any) -> Any:
        llm = start(*given, **named)
        made_up.set_in(llm, step_ms)
        return llm

    vllm_api.start = started
    sys.argv = ["model_server", *flags]
    return main()


if __name__ == "__main__":
    sys.exit(run(float(sys.argv[1]), sys.argv[2:]))
