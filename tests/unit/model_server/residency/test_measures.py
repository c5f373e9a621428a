"""Demand, times to be ready, progress, and whether weights are whole."""

import asyncio
import json
import math
import struct
from contextlib import aclosing
from pathlib import Path

import pytest

from discovery.endpoint import Residency
from model_server.residency.demand import HALF_LIFE_S, Demand
from model_server.residency.move import Move
from model_server.residency.ready_times import ReadyTimes
from model_server.residency.staged import is_whole, is_whole_adapter
from stoker_common.refusal import Refusal, unavailable
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.unit


def test_steady_demand_is_its_rate_and_halves_every_half_life() -> None:
    demand = Demand()
    for second in range(1200):
        for _ in range(3):
            demand.add(float(second))
    assert demand.per_s(1200.0) == pytest.approx(3.0, rel=0.02)
    assert demand.per_s(1200.0 + 2 * HALF_LIFE_S) == pytest.approx(demand.per_s(1200.0) / 4)
    assert Demand().per_s(5.0) == 0.0


def test_one_request_counts_as_what_it_is() -> None:
    demand = Demand()
    demand.add(7000.0)
    assert demand.per_s(7000.0) == pytest.approx(math.log(2) / HALF_LIFE_S)


def test_a_young_demand_is_told_from_the_time_it_is_watched() -> None:
    demand = Demand(1000.0)
    demand.add(1000.0)
    assert demand.per_s(1000.0) == pytest.approx(1 / 10, rel=0.1), "one at the start is no rush"
    for second in range(1, 20):
        demand.add(1000.0 + second)
    assert demand.per_s(1020.0) == pytest.approx(1.0, rel=0.05)


def test_times_are_each_models_own_from_each_place_or_the_others_longest() -> None:
    times = ReadyTimes()
    assert times.expected_s("a", Residency.STAGED) is None
    assert times.expected_s("a", Residency.HOT) == 0.0
    times.observe("a", Residency.STAGED, 10.0)
    times.observe("a", Residency.STAGED, 20.0)
    times.observe("b", Residency.STAGED, 3.0)
    times.observe("a", Residency.ASLEEP, 0.5)
    assert times.expected_s("a", Residency.STAGED) == 15.0
    assert times.expected_s("a", Residency.ASLEEP) == 0.5
    assert times.expected_s("new", Residency.STAGED) == 15.0
    assert times.expected_s("new", Residency.LISTED) is None


async def test_progress_goes_by_the_time_it_took_before_and_never_says_done() -> None:
    clock = FakeClock()
    move = Move("m", 10.0, clock)
    clock.advance(100.0)
    move.begin()
    clock.advance(4.0)
    assert move.progress.fraction == pytest.approx(0.4) and move.progress.remaining_s == pytest.approx(6.0)
    clock.advance(40.0)
    assert move.progress.fraction < 1.0 and move.progress.remaining_s == 0.0
    unknown = Move("m", None, clock).progress
    assert (unknown.fraction, unknown.remaining_s) == (0.0, None)


async def test_all_who_follow_hear_each_step_and_how_it_ended() -> None:
    move = Move("m", 1.0, FakeClock())

    async def follow() -> list[str]:
        async with aclosing(move.follow()) as news:
            return [progress.activity async for progress in news]

    async with asyncio.TaskGroup() as tasks:
        followers = [tasks.create_task(follow()) for _ in range(3)]
        await asyncio.sleep(0)
        move.tell("loading weights")
        await asyncio.sleep(0)
        move.end()
    assert [task.result() for task in followers] == [["waiting for room", "loading weights"]] * 3
    assert await follow() == []
    move.end(lambda: unavailable("broken", reason="MODEL_FAILED"))
    with pytest.raises(Refusal, match="broken"):
        await follow()


def _tensors(file: Path, *, missing_bytes: int = 0) -> None:
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16 - missing_bytes))


def test_weights_are_whole_when_every_file_is_as_long_as_its_header_says(tmp_path: Path) -> None:
    assert not is_whole(tmp_path / "absent") and not is_whole(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_whole(tmp_path), "without weights"
    _tensors(tmp_path / "a.safetensors")
    assert is_whole(tmp_path)
    _tensors(tmp_path / "b.safetensors", missing_bytes=1)
    assert not is_whole(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 12)
    assert not is_whole(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}))
    assert not is_whole(tmp_path), "a file that the index names is missing"


def test_an_adapter_is_whole_when_it_has_its_configuration_and_its_weights(tmp_path: Path) -> None:
    assert not is_whole_adapter(tmp_path / "absent")
    _tensors(tmp_path / "adapter_model.safetensors")
    assert not is_whole_adapter(tmp_path), "without a configuration"
    (tmp_path / "adapter_config.json").write_text("{}")
    assert is_whole_adapter(tmp_path)
    _tensors(tmp_path / "adapter_model.safetensors", missing_bytes=1)
    assert not is_whole_adapter(tmp_path)
