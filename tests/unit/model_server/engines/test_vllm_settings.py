"""vLLM's settings, their defaults, its environment, and the step figures."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from model_server.engine import EngineLoad
from model_server.engines.vllm_settings import VllmSettings, environment
from model_server.engines.vllm_stats import StepStats

pytestmark = pytest.mark.unit


def test_a_cpu_gets_the_measured_defaults_and_keeps_what_is_said() -> None:
    settings = VllmSettings(model="m", device="cpu", max_num_seqs=3).resolved()
    assert (settings.max_num_seqs, settings.block_size, settings.max_model_len) == (3, 32, 2048)
    assert (settings.kv_cache_memory_bytes, settings.enforce_eager) == (256 << 20, True)


def test_a_gpu_leaves_memory_and_blocks_to_vllm() -> None:
    settings = VllmSettings(model="m", device="gpu").resolved()
    assert (settings.kv_cache_memory_bytes, settings.block_size, settings.max_model_len) == (None, None, None)
    assert (settings.enforce_eager, settings.trust_remote_code) == (False, False)


@pytest.mark.parametrize(
    ("model", "name", "expected"), [("/a/Model-1B", None, "Model-1B"), ("org/m", None, "m"), ("org/m", "chat", "chat")]
)
def test_the_models_name_is_its_folders(model: str, name: str | None, expected: str) -> None:
    assert VllmSettings(model=model, served_model_name=name).name == expected


def test_the_environment_of_a_cpu_with_a_folder(tmp_path: Path) -> None:
    made = environment(VllmSettings(model=str(tmp_path), device="cpu", cpu_threads=2))
    assert made["HF_HUB_OFFLINE"] == "1"
    assert (made["VLLM_ENABLE_V1_MULTIPROCESSING"], made["OMP_NUM_THREADS"]) == ("0", "2")
    assert (made["VLLM_HOST_IP"], made["VLLM_NO_USAGE_STATS"]) == ("127.0.0.1", "1")
    assert made["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
    assert made["TORCHDYNAMO_DISABLE"] == "1"
    assert made["PYTHONDONTWRITEBYTECODE"] == ""


def test_the_environment_of_a_gpu_with_a_hub_id() -> None:
    made = environment(VllmSettings(model="org/m", device="gpu"))
    assert not {"HF_HUB_OFFLINE", "VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS", "TORCHDYNAMO_DISABLE"} & {*made}


def test_what_the_user_has_set_stays() -> None:
    made = environment(VllmSettings(model="m", device="cpu"), {"OMP_NUM_THREADS": "8", "PYTHONDONTWRITEBYTECODE": "1"})
    assert "OMP_NUM_THREADS" not in made
    assert made["PYTHONDONTWRITEBYTECODE"] == ""


@pytest.mark.parametrize("wrong", [{"gpu_memory_utilization": 1.5}, {"max_num_seqs": 0}, {"nonsense": 1}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        VllmSettings(model="m", **wrong)  # type: ignore[arg-type]


def step(running: int, waiting: int, kv: float, queries: int, hits: int) -> SimpleNamespace:
    prefix = SimpleNamespace(queries=queries, hits=hits)
    return SimpleNamespace(
        num_running_reqs=running, num_waiting_reqs=waiting, kv_cache_usage=kv, prefix_cache_stats=prefix
    )


def test_steps_are_counted_and_the_latest_figures_kept() -> None:
    stats = StepStats()
    assert stats.load(streams=0) == EngineLoad()
    stats.record(step(2, 1, 0.25, 100, 40))
    stats.record(step(3, 0, 0.5, 10, 10))
    stats.record(None)
    assert stats.load(streams=3) == EngineLoad(steps=3, running=3, waiting=0, kv_usage=0.5)
    assert (stats.prefix_tokens, stats.prefix_hit_tokens) == (110, 50)


def test_without_streams_the_last_steps_figures_are_stale() -> None:
    stats = StepStats()
    stats.record(step(2, 1, 0.25, 0, 0))
    assert stats.load(streams=0) == EngineLoad(steps=1)
