import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.routing.speeds import Speeds

pytest.importorskip("numpy")
from bench.routing.calibration import fit, read

H100 = Path(__file__).parents[4] / "bench/results/calibration_h100_llama8b.json"


def test_an_engine_that_is_as_the_model_says_is_found_again() -> None:
    truth = Speeds(kv_tokens=1000, max_streams=9)
    step_ms = {n: truth.decode_ms(n, 128 * n) for n in (1, 8, 64, 256)}
    prefill = [
        {"prompt_tokens": n, "ttft_ms": 3 + -(-n // 1024) * truth.step_base_ms + truth.prefill_ms(0, n)}
        for n in (256, 1024, 4096, 16384)
    ]
    gap_ms = truth.decode_ms(8, 8 * 128) + (1024 - 8) / truth.prefill_tokens_per_ms
    mixed = {
        "streams": 8,
        "long_prompt_tokens": 4096,
        "long_ttft_ms": [3 + 5 * step_ms[8] + truth.prefill_ms(0, 4096)],
        "during": {"itl_p50_ms": gap_ms},
    }
    found = fit(
        {
            "decode": [{"streams": n, "itl_p50_ms": ms} for n, ms in step_ms.items()],
            "prefill": prefill,
            "mixed": [mixed],
            "kv_tokens": 1000,
            "max_streams": 9,
        },
        Speeds(),
    )
    assert found.speeds.max_batched_tokens == 1024
    assert found.speeds.step_base_ms == pytest.approx(truth.step_base_ms, rel=0.01)
    assert found.speeds.step_per_stream_ms == pytest.approx(truth.step_per_stream_ms, rel=0.02)
    assert found.speeds.prefill_tokens_per_ms == pytest.approx(truth.prefill_tokens_per_ms, rel=0.02)
    assert found.speeds.attention_tokens == pytest.approx(truth.attention_tokens, rel=0.05)
    assert found.speeds.kv_tokens == 1000 and found.speeds.max_streams == 9
    assert max(found.decode_error, found.prefill_error) < 0.01


def test_the_defaults_are_the_h100s() -> None:
    assert read(H100) == replace(Speeds(), kv_tokens=131_072)


def test_speeds_by_themselves(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"speeds": {"step_base_ms": 5}}')
    assert read(path) == replace(Speeds(), step_base_ms=5)


@pytest.mark.parametrize("told", [{"speeds": {"step_bass_ms": 5}}, {"decode": []}, {}, []])
def test_what_is_no_calibration_is_refused(told: object, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="calibration"):
        read(path)
