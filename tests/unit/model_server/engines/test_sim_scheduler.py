"""The simulator's scheduler, without an engine: the caller plays the sampler."""

import random

import pytest

from model_server.engines.sim_scheduler import Scheduler, Step, step_seconds
from model_server.engines.sim_sequence import Phase, Sequence
from model_server.engines.sim_settings import SimSettings

pytestmark = pytest.mark.unit

BLOCK = 4


def _settings(**changes: object) -> SimSettings:
    base: dict[str, object] = {
        "max_streams": 4,
        "max_batched_tokens": 16,
        "max_model_tokens": 64,
        "kv_tokens": 256,
        "block_tokens": BLOCK,
    }
    return SimSettings.model_validate(base | changes)


def _sequence(length: int, *, first: int = 0, priority: int = 0, salt: str = "", reads_cache: bool = True) -> Sequence:
    prompt = tuple(range(first, first + length))
    return Sequence(prompt, BLOCK, priority=priority, cache_salt=salt, reads_cache=reads_cache)


def _turn(scheduler: Scheduler[Sequence]) -> Step[Sequence]:
    """One step, in which each that is ready gets a token."""
    step = scheduler.plan()
    assert step is not None
    for sequence in scheduler.apply(step):
        sequence.tokens.append(7)
    return step


def _shape(step: Step[Sequence]) -> tuple[int, list[int]]:
    return len(step.decodes), [count for _, count in step.prefills]


def test_nothing_to_do_is_no_step() -> None:
    assert Scheduler[Sequence](_settings()).plan() is None


def test_prompts_go_in_chunks_and_streams_that_decode_do_not_wait_for_them() -> None:
    scheduler = Scheduler[Sequence](_settings())
    scheduler.add(_sequence(3))
    assert _shape(_turn(scheduler)) == (0, [3])
    scheduler.add(_sequence(40, first=100))
    assert _shape(_turn(scheduler)) == (1, [15])
    assert _shape(_turn(scheduler)) == (1, [15])
    assert _shape(_turn(scheduler)) == (1, [10])
    assert _shape(_turn(scheduler)) == (2, [])


def test_no_more_streams_than_allowed_run() -> None:
    scheduler = Scheduler[Sequence](_settings())
    sequences = [_sequence(1, first=number) for number in range(6)]
    for sequence in sequences:
        scheduler.add(sequence)
    _turn(scheduler)
    assert (len(scheduler.running), len(scheduler.waiting)) == (4, 2)
    scheduler.end(sequences[0])
    _turn(scheduler)
    assert sequences[4].phase is Phase.RUNNING
    assert (len(scheduler.running), len(scheduler.waiting)) == (4, 1)


def test_lower_priority_then_earlier_arrival_is_admitted_first() -> None:
    scheduler = Scheduler[Sequence](_settings(max_streams=1))
    sequences = [_sequence(1, first=priority, priority=priority) for priority in (5, 1, 3)]
    sequences.append(_sequence(1, first=9, priority=1))
    for sequence in sequences:
        scheduler.add(sequence)
    admitted = []
    for _ in sequences:
        _turn(scheduler)
        admitted.append(sequences.index(scheduler.running[0]))
        scheduler.end(scheduler.running[0])
    assert admitted == [1, 3, 2, 0]


def test_a_known_prefix_is_not_computed_again() -> None:
    scheduler = Scheduler[Sequence](_settings())
    first = _sequence(12)
    scheduler.add(first)
    assert _shape(_turn(scheduler)) == (0, [12])
    scheduler.end(first)
    again, longer, salted, unread = (
        _sequence(12),
        _sequence(14),
        _sequence(12, salt="s"),
        _sequence(12, reads_cache=False),
    )
    for sequence, cached in ((again, 8), (longer, 12), (salted, 0), (unread, 0)):
        scheduler.add(sequence)
        assert _shape(_turn(scheduler)) == (0, [len(sequence.tokens) - 1 - cached])
        assert sequence.cached_tokens == cached
        scheduler.end(sequence)


def test_outputs_are_cached_too() -> None:
    scheduler = Scheduler[Sequence](_settings())
    first = _sequence(4)
    scheduler.add(first)
    for _ in range(6):
        _turn(scheduler)
    scheduler.end(first)
    following = Sequence((*first.tokens, 50, 51), BLOCK)
    scheduler.add(following)
    _turn(scheduler)
    # 4 and 6 tokens, of which the last was never computed: 9, and so 2 blocks.
    assert following.cached_tokens == 8


def test_without_a_prefix_cache_nothing_is_found() -> None:
    scheduler = Scheduler[Sequence](_settings(prefix_cache=False))
    for _ in range(2):
        sequence = _sequence(12)
        scheduler.add(sequence)
        assert _shape(_turn(scheduler)) == (0, [12])
        scheduler.end(sequence)
    assert scheduler.kv_usage == 0


def test_two_that_run_share_their_prefix() -> None:
    scheduler = Scheduler[Sequence](_settings())
    scheduler.add(_sequence(13))
    _turn(scheduler)
    usage = scheduler.kv_usage
    scheduler.add(_sequence(13))
    _turn(scheduler)
    assert scheduler.kv_usage == pytest.approx(usage + 1 / 64)


def test_when_blocks_run_out_the_last_in_rank_computes_anew_later() -> None:
    scheduler = Scheduler[Sequence](_settings(kv_tokens=64))
    urgent, patient = _sequence(24, priority=0), _sequence(24, first=100, priority=1)
    scheduler.add(patient)
    scheduler.add(urgent)
    while len(urgent.tokens) < 45:
        _turn(scheduler)
    assert scheduler.preemptions == 1
    assert patient.phase is Phase.WAITING
    assert (patient.blocks, patient.computed) == (0, 0)
    drawn = len(patient.tokens)
    assert drawn > 24
    scheduler.end(urgent)
    while len(patient.tokens) == drawn:
        _turn(scheduler)
    assert len(patient.tokens) == drawn + 1
    # What it was told at first stays.
    assert patient.cached_tokens == 0


def test_ending_in_the_middle_of_a_step_frees_at_once_and_draws_no_token() -> None:
    scheduler = Scheduler[Sequence](_settings())
    sequence = _sequence(5)
    scheduler.add(sequence)
    step = scheduler.plan()
    assert step is not None
    assert scheduler.kv_usage > 0
    scheduler.end(sequence)
    scheduler.end(sequence)
    assert scheduler.kv_usage == 0
    assert scheduler.apply(step) == []
    assert scheduler.plan() is None


def test_a_step_takes_its_base_its_streams_and_its_prompts() -> None:
    settings = _settings(step_base_ms=5, step_per_stream_ms=2, prefill_tokens_per_second=1000)
    step = Step([_sequence(1), _sequence(1)], [(_sequence(10), 10)])
    assert step_seconds(settings, step) == pytest.approx(0.005 + 2 * 0.002 + 0.010)


@pytest.mark.parametrize("seed", range(20))
def test_under_any_load_all_end_within_the_limits_and_nothing_is_left(seed: int) -> None:
    rng = random.Random(seed)
    settings = _settings(kv_tokens=rng.choice([64, 96, 256]), max_streams=rng.choice([1, 3, 8]))
    scheduler = Scheduler[Sequence](settings)
    wanted: dict[Sequence, int] = {}
    to_come = 40
    while to_come or wanted:
        while to_come and rng.random() < 0.5:
            to_come -= 1
            length = rng.randint(1, 40)
            sequence = _sequence(length, first=rng.choice([0, 0, 500]), priority=rng.randint(0, 2))
            wanted[sequence] = length + rng.randint(1, 64 - length)
            scheduler.add(sequence)
        if wanted and rng.random() < 0.05:
            gone = rng.choice(list(wanted))
            del wanted[gone]
            scheduler.end(gone)
        step = scheduler.plan()
        if step is None:
            assert not wanted
            continue
        assert len(step.decodes) + step.prefill_tokens <= settings.max_batched_tokens
        assert len(scheduler.running) <= settings.max_streams
        assert 0 < scheduler.kv_usage <= 1
        planned = [*step.decodes, *(sequence for sequence, _ in step.prefills)]
        assert len(set(planned)) == len(planned)
        for sequence in scheduler.apply(step):
            sequence.tokens.append(rng.randint(0, 3))
            if len(sequence.tokens) == wanted[sequence]:
                del wanted[sequence]
                scheduler.end(sequence)
    assert (scheduler.running, scheduler.waiting, scheduler.kv_usage) == ([], [], 0)
