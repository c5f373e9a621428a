"""The simulated engine on virtual time: how long things take, and what faults do."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from model_server.engine import (
    DeviceLost,
    EngineDead,
    EngineError,
    EngineOutput,
    EngineRefused,
    EngineRequest,
    ResumeMode,
)
from model_server.engines.sim import SimEngine
from model_server.engines.sim_faults import FaultSet, InjectedError
from model_server.engines.sim_settings import SimSettings
from stoker.v1 import generation_pb2, inference_pb2
from tests.fakes.virtual_clock import VirtualClock, VirtualTimer

pytestmark = pytest.mark.unit

Sampling = generation_pb2.Sampling
SETTINGS = SimSettings(
    load_ms=500,
    step_base_ms=10,
    step_per_stream_ms=1,
    prefill_tokens_per_second=1000,
    max_streams=4,
    max_batched_tokens=100,
    max_model_tokens=1000,
    kv_tokens=16_000,
)


async def _started(clock: VirtualClock, settings: SimSettings = SETTINGS) -> SimEngine:
    engine = SimEngine("m@1", settings, clock=clock)
    await clock.run(engine.start())
    return engine


def _request(prompt: range = range(300, 350), max_tokens: int = 5, sampling: Sampling | None = None) -> EngineRequest:
    return EngineRequest("r", tuple(prompt), sampling or Sampling(), max_tokens)


async def _whole(engine: SimEngine, request: EngineRequest) -> list[EngineOutput]:
    async with aclosing(engine.generate(request)) as outputs:
        return [output async for output in outputs]


async def test_loading_takes_its_time_and_nothing_runs_before() -> None:
    clock = VirtualClock()
    engine = SimEngine("m@1", SETTINGS, clock=clock)
    with pytest.raises(EngineError):
        await _whole(engine, _request())
    await clock.run(engine.start())
    assert clock.time() == 0.5
    with pytest.raises(EngineError):
        await engine.start()


async def test_steps_take_what_the_settings_say() -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    began = clock.time()
    outputs = await clock.run(_whole(engine, _request(max_tokens=5)))
    # 50 tokens of prompt at 1,000 a second and the base; then four steps of the base and one stream.
    assert clock.time() - began == pytest.approx(0.050 + 0.010 + 4 * 0.011)
    assert [len(output.token_ids) for output in outputs] == [1] * 5
    assert engine.load().steps == 5


class LateClock(VirtualClock):
    """Its timers fire late, as on a busy machine."""

    def call_at(self, when: float, callback: Callable[[], object], /) -> VirtualTimer:
        return super().call_at(when + 0.004, callback)


async def test_late_timers_do_not_add_up() -> None:
    clock = LateClock()
    engine = await _started(clock)
    began = clock.time()
    await clock.run(_whole(engine, _request(max_tokens=50)))
    assert clock.time() - began == pytest.approx(0.060 + 49 * 0.011 + 0.004)


async def test_before_min_tokens_stop_strings_pass() -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    sampling = Sampling(stop=[" "], min_tokens=3)
    outputs = await clock.run(_whole(engine, _request(max_tokens=9, sampling=sampling)))
    # Words begin with a space: the first one after three tokens is the fourth.
    assert sum(len(output.token_ids) for output in outputs) == 4
    assert outputs[-1].stop_string == " "


async def test_waiting_for_a_place_is_told() -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    requests = [_request(range(300 + number, 310 + number), 3) for number in range(5)]

    async def all_of_them() -> list[list[EngineOutput]]:
        return await asyncio.gather(*(_whole(engine, request) for request in requests))

    firsts = [outputs[0] for outputs in await clock.run(all_of_them())]
    waits = [first.queue_ms for first in firsts]
    assert waits[0] == 0
    # The second to fourth came while the first step was under way; the fifth waited for a place.
    assert waits[1:4] == [pytest.approx(20)] * 3
    assert waits[4] is not None
    assert waits[4] > 40
    # Each then took one step to its first token: the second to fourth one of three prompts beside a stream.
    prefills = [first.prefill_ms for first in firsts]
    assert prefills[0] == pytest.approx(20)
    assert prefills[1:4] == [pytest.approx(41)] * 3


async def test_idle_it_has_no_timer_and_no_task() -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    await clock.run(_whole(engine, _request()))
    assert clock.pending == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await engine.stop()


async def test_an_output_ends_with_the_context() -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    outputs = await clock.run(_whole(engine, _request(range(300, 1297), max_tokens=100)))
    assert len(outputs) == 3
    assert outputs[-1].finish_reason == inference_pb2.FINISH_REASON_LENGTH


async def test_stream_interval_gathers_tokens_after_the_first() -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    plain = await clock.run(_whole(engine, _request(max_tokens=9)))
    sampling = Sampling(stream_interval=4, logprobs=1)
    gathered = await clock.run(_whole(engine, _request(max_tokens=9, sampling=sampling)))
    assert [len(output.token_ids) for output in gathered] == [1, 4, 4]
    assert [len(output.logprobs) for output in gathered] == [1, 4, 4]
    assert "".join(output.text for output in gathered) == "".join(output.text for output in plain)


async def test_without_detokenising_there_is_no_text() -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    outputs = await clock.run(_whole(engine, _request(sampling=Sampling(detokenize=False))))
    assert {output.text for output in outputs} == {""}
    assert sum(len(output.token_ids) for output in outputs) == 5


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_request(range(0)), "prompt"),
        (_request(range(1000)), "prompt"),
        (_request(range(-1, 5)), "token_ids"),
        (_request(range(31_990, 32_001)), "token_ids"),
        (_request(max_tokens=0), "sampling.max_tokens"),
        (_request(sampling=Sampling(allowed_token_ids=[32_000])), "sampling.allowed_token_ids"),
        (_request(sampling=Sampling(stop_token_ids=[-1])), "sampling.stop_token_ids"),
        (_request(sampling=Sampling(logprobs=21)), "sampling.logprobs"),
        (_request(sampling=Sampling(stop=[""])), "sampling.stop"),
        (_request(sampling=Sampling(stop=["x"], detokenize=False)), "sampling.stop"),
    ],
)
async def test_what_makes_no_sense_is_refused(request_: EngineRequest, field: str) -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    with pytest.raises(EngineRefused) as refusal:
        await _whole(engine, request_)
    assert refusal.value.field == field
    assert not refusal.value.unsupported
    assert engine.load().waiting == engine.load().running == 0


@pytest.mark.parametrize(("fault", "error"), [("dead", EngineDead), ("device_lost", DeviceLost)])
async def test_death_reaches_every_stream_after_what_it_produced(fault: str, error: type[EngineDead]) -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    read: list[EngineOutput] = []

    async def reading() -> None:
        async with aclosing(engine.generate(_request(max_tokens=900))) as outputs:
            async for output in outputs:
                read.append(output)  # noqa: PERF401 - what was read before the failure must stay

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(_caught(reading))
        await clock.advance(0.1)
        assert len(read) == 4
        engine.faults.inject(**{fault: True})
        caught = await reader
    assert type(caught) is error
    with pytest.raises(error):
        await engine.check()
    engine.faults.replace(FaultSet())
    with pytest.raises(error):
        await _whole(engine, _request())
    assert (engine.load().running, engine.load().kv_usage, clock.pending) == (0, 0, 0)


async def _caught(work: Callable[[], Awaitable[object]]) -> EngineError | None:
    try:
        await work()
    except EngineError as error:
        return error
    return None


async def test_a_stall_stops_the_steps_and_nothing_tells_until_it_passes() -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(_whole(engine, _request(max_tokens=5)))
        await clock.advance(0.065)
        engine.faults.inject(stall=True)
        steps = engine.load().steps
        await clock.advance(100)
        assert engine.load().steps == steps
        assert engine.load().running == 1
        await engine.check()
        late = group.create_task(_whole(engine, _request(max_tokens=2)))
        await clock.advance(100)
        assert not late.done()
        engine.faults.inject(stall=False)
        await clock.advance(1)
        assert len(reader.result()) == 5
        assert len(late.result()) == 2


async def test_a_request_that_comes_in_a_stall_is_served_after_it() -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    engine.faults.inject(stall=True)
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(_whole(engine, _request()))
        await clock.advance(5)
        assert engine.load().waiting == 1
        engine.faults.inject(stall=False)
        await clock.advance(5)
        assert reader.done()


async def test_slow_takes_so_many_times_as_long() -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    engine.faults.inject(slow_factor=10)
    began = clock.time()
    await clock.run(_whole(engine, _request(max_tokens=5)))
    assert clock.time() - began == pytest.approx(10 * (0.060 + 4 * 0.011))


async def test_errors_come_at_the_rate_asked_for_and_another_server_may_do_better() -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    engine.faults.inject(error_rate=0.3)
    failed = 0
    for _ in range(300):
        error = await clock.run(_caught(lambda: _whole(engine, _request(max_tokens=1))))
        if error is not None:
            assert type(error) is InjectedError
            assert error.retryable
            failed += 1
    assert failed == pytest.approx(90, abs=25)
    engine.faults.inject(error_rate=1)
    with pytest.raises(InjectedError):
        await _whole(engine, _request())


async def test_dying_while_loading_fails_the_start() -> None:
    clock = VirtualClock()
    engine = SimEngine("m@1", SETTINGS, clock=clock)
    async with asyncio.TaskGroup() as group:
        start = group.create_task(_caught(engine.start))
        await clock.advance(0.1)
        engine.faults.inject(dead=True)
        assert type(await start) is EngineDead
    assert clock.pending == 0


async def test_stopping_before_and_during_the_start() -> None:
    clock = VirtualClock()
    early = SimEngine("m@1", SETTINGS, clock=clock)
    await early.stop()
    with pytest.raises(EngineError):
        await early.start()
    engine = SimEngine("m@1", SETTINGS, clock=clock)
    async with asyncio.TaskGroup() as group:
        start = group.create_task(_caught(engine.start))
        await clock.advance(0.1)
        await engine.stop()
        assert type(await start) is EngineDead
    assert clock.pending == 0


async def test_the_faults_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    clock = VirtualClock()
    engine = await _started(clock, SETTINGS.model_copy(update={"faults_file": path}))
    path.write_text('{"slow_factor": 3}')
    await clock.advance(0.2)
    assert engine.faults.current == FaultSet(slow_factor=3)
    path.write_text('{"slow_factor": 3, "no_such_fault": 1}')
    await clock.advance(0.2)
    assert engine.faults.current == FaultSet(slow_factor=3)
    path.unlink()
    await clock.advance(0.2)
    assert engine.faults.current == FaultSet()
    path.write_text('{"device_lost": true}')
    await clock.advance(0.2)
    with pytest.raises(DeviceLost):
        await engine.check()
    assert clock.pending == 0


@pytest.mark.parametrize("wrong", [{"error_rate": 1.5}, {"slow_factor": 0}, {"ded": True}])
def test_what_is_no_fault_is_not_injected(wrong: dict[str, float]) -> None:
    engine = SimEngine("m@1")
    with pytest.raises(ValidationError):
        engine.faults.inject(**wrong)
    assert engine.faults.current == FaultSet()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_streams": 100, "max_batched_tokens": 100}, "max_batched_tokens"),
        ({"kv_tokens": 100, "max_model_tokens": 101}, "kv_tokens"),
        ({"vocabulary": 10}, "vocabulary"),
        ({"prefill_tokens_per_second": 0}, "prefill_tokens_per_second"),
    ],
)
def test_settings_that_cannot_work_are_named(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        SimSettings.model_validate(wrong)


@pytest.mark.parametrize(
    ("mode", "seconds"),
    [
        # 90 tokens at 1,000 a second and the base.
        (ResumeMode.PREFILL, 0.100),
        (ResumeMode.RESTORE, 0.100),
        # 50 tokens of prompt; then a decode for each of 40 emitted tokens.
        (ResumeMode.REPLAY, 0.060 + 40 * 0.011),
    ],
)
async def test_resuming_costs_a_prefill_or_as_many_steps_as_before(mode: ResumeMode, seconds: float) -> None:
    clock = VirtualClock()
    engine = await _started(clock)
    reference = await clock.run(_whole(engine, _request(max_tokens=60)))
    emitted = tuple(output.token_ids[0] for output in reference[:40])
    # Elsewhere: nothing of it is in the cache.
    engine = await _started(clock)
    began = clock.time()
    stream = engine.generate(replace(_request(max_tokens=60), emitted_token_ids=emitted, resume_mode=mode))

    async def first_new() -> tuple[int, ...]:
        token_ids: tuple[int, ...] = ()
        async with aclosing(stream) as outputs:
            async for output in outputs:
                token_ids += output.token_ids
                if len(token_ids) > len(emitted):
                    break
        return token_ids

    token_ids = await clock.run(first_new())
    assert clock.time() - began == pytest.approx(seconds)
    assert token_ids[:-1] == emitted
    if mode is not ResumeMode.PREFILL:
        assert token_ids[-1] == reference[40].token_ids[0]
