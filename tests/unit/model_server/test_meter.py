"""What the meter makes of sequences whose times the test decides."""

import pytest

from model_server.meter import DecayedRatio, Meter, SequenceMeter
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.unit


def test_a_ratio_forgets_and_does_not_change_by_age_alone() -> None:
    ratio = DecayedRatio(10.0)
    assert ratio.value == 0.0
    ratio.add(100.0, 1.0, now=0.0)
    assert ratio.value == 100.0
    ratio.add(300.0, 1.0, now=10.0)
    assert ratio.value == pytest.approx((50.0 + 300.0) / 1.5)
    ratio.add(7.0, 1.0, now=1e6)
    assert ratio.value == pytest.approx(7.0)


def test_prompts_that_share_the_engine_measure_its_rate_and_not_each_their_own() -> None:
    clock = FakeClock()
    meter = Meter(clock)
    one, two = meter.begin(1000), meter.begin(1000)
    assert meter.waiting_prompt_tokens == 2000
    clock.advance(1.0)
    one.output(1, 0, clock())
    clock.advance(1.0)
    two.output(1, 0, clock())
    assert meter.prefill_tokens_per_second == pytest.approx(1000.0)
    assert meter.waiting_prompt_tokens == 0


def test_cached_tokens_are_not_computed_and_short_prompts_measure_nothing() -> None:
    clock = FakeClock()
    meter = Meter(clock)
    for tokens, cached in ((1000, 950), (100, 0)):
        sequence = meter.begin(tokens)
        clock.advance(0.1)
        sequence.output(1, cached, clock())
        sequence.end()
    assert meter.prefill_tokens_per_second == 0.0


def test_what_a_step_takes_anyway_is_not_laid_to_its_prompt() -> None:
    clock = FakeClock()
    meter = Meter(clock)
    for tokens in (200, 2000, 500, 1000) * 3:
        sequence = meter.begin(tokens)
        clock.advance(0.030 + tokens / 10_000)  # the streams' part of the step, and the prompt's
        sequence.output(1, 0, clock())
        sequence.end()
    assert meter.prefill_tokens_per_second == pytest.approx(10_000, rel=0.1)


def test_what_the_engine_says_it_took_counts_without_the_wait_and_the_way() -> None:
    clock = FakeClock()
    meter = Meter(clock)
    for tokens in (200, 2000, 500, 1000) * 3:
        sequence = meter.begin(tokens)
        clock.advance(tokens % 7 + tokens / 10_000)  # a step ran, the loop was busy
        sequence.output(1, 0, clock(), prefill_ms=30 + tokens / 10)
        sequence.end()
    assert meter.prefill_tokens_per_second == pytest.approx(10_000, rel=0.1)


def test_prompts_that_the_engine_computed_together_still_measure_its_rate_once() -> None:
    clock = FakeClock()
    meter = Meter(clock)
    one, two = meter.begin(1000), meter.begin(1000)
    clock.advance(1.0)
    one.output(1, 0, clock(), prefill_ms=1000)
    clock.advance(1.0)
    two.output(1, 0, clock(), prefill_ms=2000)  # in chunks, from the first one's beginning
    assert meter.prefill_tokens_per_second == pytest.approx(1000.0)


def test_prompts_of_one_step_are_one() -> None:
    clock = FakeClock()
    meter = Meter(clock)
    one, two = meter.begin(500), meter.begin(1500)
    clock.advance(0.2)
    for sequence in (one, two):
        sequence.output(1, 0, clock())
    assert meter.prefill_tokens_per_second == pytest.approx(10_000)


def test_waiting_for_a_place_in_a_full_batch_is_not_computing() -> None:
    clock = FakeClock()
    meter = Meter(clock, full=lambda: True)
    sequence = meter.begin(1000)
    clock.advance(60.0)
    sequence.output(1, 0, clock())
    assert meter.prefill_tokens_per_second == 0.0


def test_time_between_tokens_is_known_while_streams_run() -> None:
    clock = FakeClock()
    meter = Meter(clock)
    sequences = [meter.begin(10) for _ in range(3)]
    for sequence in sequences:
        sequence.output(1, 0, clock())
    for _ in range(10):
        clock.advance(0.02)
        for sequence in sequences:
            sequence.output(1, 0, clock())
    assert meter.itl_ms == 0.0
    meter.settle()
    assert meter.itl_ms == pytest.approx(20.0)
    clock.advance(5.0)
    for sequence in sequences:
        sequence.end()
    assert meter.itl_ms == pytest.approx(20.0)
    assert sequences[0].later_tokens == 10
    assert sequences[0].later_s == pytest.approx(0.2)


def test_ending_twice_or_before_the_first_output_leaves_nothing_booked() -> None:
    meter = Meter(FakeClock())
    sequence = meter.begin(500)
    sequence.end()
    sequence.end()
    assert (meter.waiting_prompt_tokens, meter.sequences) == (0, set())


def test_a_sequence_that_has_not_ended_makes_it_busy() -> None:
    meter = Meter(FakeClock())
    assert not meter.busy
    one, two = meter.begin(5), meter.begin(5)
    one.end()
    assert meter.busy
    two.end()
    assert not meter.busy


def decode(clock: FakeClock, sequences: list[SequenceMeter], tokens: int, step_s: float) -> None:
    for _ in range(tokens):
        clock.advance(step_s)
        for sequence in sequences:
            sequence.output(1, 0, clock())


def test_what_a_step_takes_for_each_token_of_contexts_shows_where_no_prompt_is_computed() -> None:
    clock = FakeClock()
    meter = Meter(clock)
    sequences: list[SequenceMeter] = []
    for _ in range(16):
        sequences.append(meter.begin(1000))
        decode(clock, sequences[:-1], 10, 0.5)  # steps with its prompt tell nothing
        sequences[-1].output(1, 0, clock())
        decode(clock, sequences, 20, (6 + 0.001 * meter.context_tokens) / 1e3)
    assert meter.context_tokens == 16_000 + sum(sequence.tokens for sequence in sequences)
    assert meter.step_ms_per_context_token == pytest.approx(0.001, rel=0.2)


def test_a_few_spells_tell_nothing_of_contexts() -> None:
    clock = FakeClock()
    meter = Meter(clock)
    sequence = meter.begin(1000)
    sequence.output(1, 0, clock())
    for _ in range(7):
        decode(clock, [sequence], 10, 0.01)
        meter.settle()
    assert meter.step_ms_per_context_token == 0.0


def test_what_waits_counts_for_what_it_takes_once_that_is_known() -> None:
    clock = FakeClock()
    meter = Meter(clock)
    for tokens in (1000, 20_000, 5000, 40_000) * 8:
        sequence = meter.begin(tokens)
        clock.advance(0.01 + tokens / 50_000 * (1 + tokens / 2 / 20_000))
        sequence.output(1, 0, clock())
        sequence.end()
    assert meter.attention_tokens == pytest.approx(20_000, rel=0.05)
    waiting = meter.begin(40_000)
    assert meter.waiting_prompt_tokens == pytest.approx(80_000, rel=0.05)
    waiting.end()
    assert meter.waiting_prompt_tokens == 0
