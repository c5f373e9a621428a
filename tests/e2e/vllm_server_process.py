"""A process with a vLLM engine in it, as small as can be, for tests to kill. Writes its engine's pids."""

import asyncio
import os
import sys

import psutil

from model_server.engines.vllm_settings import VllmSettings, environment


async def main(settings: VllmSettings) -> None:
    from model_server.engines.vllm_engine import VllmEngine

    engine = VllmEngine(settings)
    await engine.start()
    children = psutil.Process().children(recursive=True)
    sys.stdout.write(" ".join(str(child.pid) for child in children) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)  # Told to end, or killed.
    await engine.stop()


if __name__ == "__main__":
    chosen = VllmSettings(model=sys.argv[1])
    os.environ.update(environment(chosen, os.environ))
    asyncio.run(main(chosen))
