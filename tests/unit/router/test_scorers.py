from typing import Any

import pytest

from discovery.catalog import CatalogState
from discovery.endpoint import Load, ModelState, Residency
from router.ledger import Account, Typical
from router.scorers import Cost, Rates, cost
from router.snapshot import Holder, Member
from tests.unit.router.builders import HOT, endpoint, key, request

RATES = Rates(prefill_tokens_per_second=1000, itl_ms=10, decode_slowdown_per_stream=0.02)
SERVER = endpoint()
HOLDER = Holder(Member(key(SERVER), SERVER, CatalogState.PASSING), HOT)


def price(model: ModelState = HOT, held_tokens: int = 0, way_ms: float = 0, **account: Any) -> Cost:
    """Of a request with 100 tokens in and 100 out, on a server with 8 streams at most."""
    of = endpoint(models=(model,))
    holder = Holder(Member(key(of), of, CatalogState.PASSING), model)
    return cost(request(), holder, Account(**account), held_tokens, way_ms, RATES, now_s=0.0)


def test_an_idle_hot_server_costs_its_prefill() -> None:
    assert price() == Cost(0, 0, 100, 0, 0, 100, 0)


@pytest.mark.parametrize(
    ("model", "ready_ms"),
    [
        (ModelState("m", Residency.HOT, 1, time_to_ready_ms=9), 0),
        (ModelState("m", Residency.ASLEEP, 1, time_to_ready_ms=550), 550),
        (ModelState("m", Residency.LISTED, 1), RATES.unmeasured_ready_ms),
    ],
)
def test_ready_is_the_time_until_the_model_is_hot(model: ModelState, ready_ms: float) -> None:
    assert price(model).ready_ms == ready_ms


@pytest.mark.parametrize(
    ("base", "ready_ms"),
    [(Residency.HOT, RATES.unmeasured_adapter_ms), (Residency.ASLEEP, RATES.unmeasured_ready_ms)],
)
def test_an_adapter_that_nobody_has_measured_is_near_where_its_base_is_hot(base: Residency, ready_ms: float) -> None:
    adapter = ModelState("tone", Residency.STAGED, 1, base="m")
    of = endpoint(models=(ModelState("m", base, 1, time_to_ready_ms=550), adapter))
    holder = Holder(Member(key(of), of, CatalogState.PASSING), adapter)
    assert cost(request(), holder, Account(), 0, 0, RATES, now_s=0.0).ready_ms == ready_ms


def test_a_cold_model_costs_the_room_for_it_too() -> None:
    crowded = Load(room_ms=2000)
    assert price(ModelState("m", Residency.ASLEEP, 1, 550), load=crowded).ready_ms == 2550
    assert price(load=crowded).ready_ms == 0


def test_a_full_cache_is_a_full_batch() -> None:
    # 4 run and 2 wait for the cache, so a place becomes free every 250 ms, and it is the third to want one.
    full = Load(running=4, waiting=2, kv_usage=0.95)
    assert price(own_streams=6, load=full).queue_ms == 750
    assert price(own_streams=6, load=Load(running=4, waiting=0, kv_usage=0.95)).queue_ms == 0


def test_queue_is_what_waits_there_at_the_measured_rate() -> None:
    assert price(own_prompt_tokens=300, others_prompt_tokens=200.0).queue_ms == 500
    assert price(own_prompt_tokens=300, load=Load(prefill_tokens_per_second=3000)).queue_ms == 100


@pytest.mark.parametrize(("streams", "queue_ms"), [(7, 0), (8, 125), (15, 1000)])
def test_a_full_batch_makes_wait_for_a_place(streams: int, queue_ms: float) -> None:
    # A stream takes 100 tokens x 10 ms; with 8 of them a place becomes free every 125 ms.
    assert price(own_streams=streams).queue_ms == queue_ms


@pytest.mark.parametrize(("held", "prefill_ms", "cached"), [(0, 100, 0), (60, 40, 60), (100, 1, 99), (5000, 1, 99)])
def test_cached_tokens_are_not_computed_but_the_last_one_always_is(held: int, prefill_ms: float, cached: int) -> None:
    found = price(held_tokens=held)
    assert (found.prefill_ms, found.cached_tokens) == (prefill_ms, cached)


def test_decode_is_what_streams_do_to_each_other_as_first_tokens_are_worth() -> None:
    # 5 streams slow each of our tokens by 10 % of 10 ms, and are slowed as much. Our prompt of 100 ms holds each of
    # them up by 0.25 ms a token: who is found is twice as long, and half of it another prompt would do. At 10 ms a
    # token, a fifth of what is just good enough, a ms more is worth a fifth of 80.
    assert price(own_streams=2, others_streams=3).decode_ms == pytest.approx(16 * (5 * 2 * 0.2 + 5 * 0.25), rel=0.001)


def test_a_step_that_reads_contexts_is_slower_by_theirs_for_us_and_by_ours_for_them() -> None:
    # 0.001 ms a token: theirs are 8,000, ours 150 on average. Our prompt holds each of the 5 up by 0.25 ms a token.
    told = Load(context_tokens=8000, step_ms_per_context_token=0.001)
    found = price(own_streams=5, load=told)
    assert found.decode_ms == pytest.approx(16 * (8 + 5 * 0.15 + 5 * 0.25), rel=0.001)


@pytest.mark.parametrize(
    ("itl_ms", "worth"), [(10, 16), (25, 40), (45, 72 + 96.8), (50, 80 + 159.6), (100, 80 + 159.6)]
)
def test_a_pace_is_worth_the_more_the_nearer_it_is_to_what_is_just_good_enough(itl_ms: float, worth: float) -> None:
    assert RATES.pace_worth(itl_ms) == pytest.approx(worth, abs=0.1)
    # At the limit a pace is as bad as the wait for a first token that is just good enough; and half of the paces that
    # are measured so are beyond it, which is as bad again.
    limit_ms = sum(RATES.pace_worth(ms + 0.5) for ms in range(50))
    assert limit_ms == pytest.approx(1.5 * RATES.just_first_token_ms, rel=0.001)


def test_a_delay_of_a_short_answer_is_worth_itself() -> None:
    # One token: it is 2 % of 10 ms later and makes 5 others so, and holds them up by 100 ms once, half of
    # which another prompt would do.
    found = cost(request(output_tokens=1), HOLDER, Account(own_streams=5), 0, 0.0, RATES, now_s=0.0)
    assert found.decode_ms == pytest.approx(5 * (2 * 0.2 + 50))


def test_the_farther_tokens_are_from_a_prompts_beginning_the_longer_they_take() -> None:
    # 100 tokens are 50 from the beginning on average, where one takes half more; the last 50 three quarters.
    told = Load(attention_tokens=100)
    assert price(load=told).prefill_ms == pytest.approx(150)
    assert price(held_tokens=50, load=told).prefill_ms == pytest.approx(50 * 1.75)


def test_who_has_not_measured_is_taken_for_what_others_have() -> None:
    """A server that nothing was sent to must not look slow for that."""
    usual = Typical(prefill_tokens_per_second=10_000, itl_ms=20, attention_tokens=50, step_ms_per_context_token=0.001)
    untold = cost(request(), HOLDER, Account(own_streams=1), 0, 0.0, RATES, now_s=0.0, typical=usual)
    assert untold.prefill_ms == pytest.approx(100 * 2 / 10)
    assert untold.decode_ms == pytest.approx(RATES.pace_worth(20) * (0.001 * 150 + 20 / 400))
    told = Account(load=Load(prefill_tokens_per_second=1000, itl_ms=5, attention_tokens=1e9))
    assert cost(request(), HOLDER, told, 0, 0.0, RATES, now_s=0.0, typical=usual).prefill_ms == pytest.approx(105)


def test_the_sum_is_the_sum() -> None:
    found = price(ModelState("m", Residency.ASLEEP, 1, 7.0), 10, 50.0, own_streams=9, own_prompt_tokens=30)
    assert found.total_ms == pytest.approx(
        found.ready_ms + found.queue_ms + found.prefill_ms + found.decode_ms + found.zone_ms
    )
    assert found.zone_ms == 50
