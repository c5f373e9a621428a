"""What is asked of an engine before it serves."""

from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from model_server.engines.vllm_warmup import warm_up


async def test_each_kind_is_asked_for_and_what_an_engine_cannot_do_is_passed_over() -> None:
    engine = SimEngine("sim", SimSettings(load_ms=0, step_base_ms=0.1, step_per_stream_ms=0, max_streams=8))
    await engine.start()
    try:
        assert await warm_up(engine) == ("bias", "grammar")
        assert engine.load().steps > 0
        assert (engine.load().running, engine.load().waiting) == (0, 0)
    finally:
        await engine.stop()
