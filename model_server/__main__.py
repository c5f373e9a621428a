"""`python -m model_server`: settings, signals, the engine and the outside world around a ModelServer."""

import asyncio
import logging
import os
import random
import signal
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from discovery.consul_client import ConsulClient
from discovery.consul_registrar import ConsulRegistrar
from discovery.pins import ConsulPins
from model_server.config import CommandSettings, ServerSettings, check_engine, sim_settings, vllm_settings
from model_server.engine import EngineError
from model_server.gpu import NvmlGpus
from model_server.host import Host
from model_server.lifecycle import EXIT_FAILED
from model_server.record import Device
from model_server.residency.spec import AdapterSpec, ModelSpec
from model_server.residency.staged import is_whole, is_whole_adapter
from model_server.server import ModelServer
from stoker_common import event_loop, logs, memory, metrics, tracing
from stoker_common.backoff import Backoff
from stoker_common.failure import where
from stoker_common.settings import SettingsError, load

log = logging.getLogger(__name__)

EXIT_USAGE = 2
_PINS_RETRY_FIRST_S, _PINS_RETRY_MOST_S = 0.5, 10.0


async def serve(settings: ServerSettings) -> int:
    """Run one server until it has left. Returns the process's exit code."""
    traces = tracing.configure("stoker-model-server", settings.otlp_endpoint or None)
    models, device = _models(settings)
    async with AsyncExitStack() as held:
        held.callback(traces.shutdown)
        registrar, pins = None, None
        if settings.consul_address:
            consul = await held.enter_async_context(ConsulClient(settings.consul_address))
            rng = random.Random()
            registrar = ConsulRegistrar(consul, rng=rng)
            kept = Path(settings.pins_file) if settings.pins_file else None
            backoff = Backoff(rng, _PINS_RETRY_FIRST_S, _PINS_RETRY_MOST_S)
            pins = ConsulPins(consul, settings.pins_zone, backoff, kept)
        server = ModelServer(
            settings,
            [*models, *_adapters(settings)],
            registrar,
            pins=pins,
            device=device,
            traces=traces,
            settle=memory.settle,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        if settings.metrics_port >= 0:
            scraped = metrics.serve(server.metrics.registry, settings.metrics_host, settings.metrics_port)
            held.callback(scraped.close)
            log.info("serving metrics", extra={"host": settings.metrics_host, "port": scraped.port})
        return await server.run()


def _models(settings: ServerSettings) -> tuple[list[ModelSpec], Device | None]:
    """The models that the settings name, and what they are computed on, None where that is simulated."""
    if settings.engine == "sim":
        from model_server.engines.sim import SimEngine

        sim = sim_settings(settings)
        return [
            ModelSpec(
                entry.served_model,
                partial(SimEngine, entry.served_model, sim),
                settings.share_of(entry),
                max_model_tokens=sim.max_model_tokens,
            )
            for entry in settings.entries
        ], None
    from model_server.engines.vllm_settings import environment

    own = [(entry, vllm_settings(settings, entry)) for entry in settings.entries]
    # vLLM reads its variables when it is imported.
    os.environ.update(environment(own[0][1], os.environ))
    from model_server.engines.vllm_engine import VllmEngine

    first = own[0][1]
    device = Host() if first.on_cpu else NvmlGpus.open(os.environ, first.tensor_parallel_size)
    return [
        ModelSpec(
            entry.served_model,
            partial(VllmEngine, each),
            settings.share_of(entry),
            staged=partial(is_whole, Path(entry.model)),
            max_model_tokens=each.resolved().max_model_len or 0,
        )
        for entry, each in own
    ], device


def _adapters(settings: ServerSettings) -> list[AdapterSpec]:
    """The LoRA adapters that the settings name. The simulator reads none."""
    return [
        AdapterSpec(
            each.name,
            settings.base_of(each),
            each.adapter,
            staged=partial(is_whole_adapter, Path(each.adapter).expanduser()) if settings.engine == "vllm" else _there,
        )
        for each in settings.adapters
    ]


def _there() -> bool:
    return True


def main() -> int:
    """The process's exit code: 0 left as asked, 1 failed, 2 cannot be started so."""
    try:
        settings = load(CommandSettings, "model_server", sys.argv[1:])
        check_engine(settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    logs.configure(settings.log_level, "model_server", sys.stdout)
    try:
        code = event_loop.run(serve(settings))
    except (OSError, EngineError) as error:
        log.error("cannot start", extra={"why": str(error)})
        code = EXIT_FAILED
    except Exception as error:
        # Without its message, which may quote a prompt.
        log.error("unexpected error", extra={"where": where(error)})
        code = EXIT_FAILED
    if code != 0:
        # A broken engine's threads may never end, and would keep the process, its port and its memory.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
