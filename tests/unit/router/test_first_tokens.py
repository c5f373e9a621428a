"""When first tokens are expected, and what is learned from when they came."""

import heapq
import random
import statistics

import pytest
from google.protobuf.duration_pb2 import Duration

from discovery.endpoint import Load
from router.first_tokens import Expectation, FirstTokens
from router.ledger import NOTHING, Account, Booking, Ledger
from router.scorers import Cost
from stoker.v1 import inference_pb2
from tests.fakes.clock import FakeClock

KEY, OTHER = ("a-1", "e"), ("a-2", "e")


def cost(ready_ms: float = 0.0, full_ms: float = 0.0, prefill_ms: float = 100.0) -> Cost:
    return Cost(ready_ms, full_ms, prefill_ms, 0.0, 0.0, 0.0, 0, full_ms=full_ms)


def expected(
    of: FirstTokens, tokens: int = 1000, account: Account = NOTHING, price: Cost | None = None, now_s: float = 0.0
) -> Expectation:
    return of.expect(KEY, "m", tokens, price or cost(prefill_ms=tokens / 30), account, 5.0, now_s)


def learned(*points: tuple[int, float], price: Cost | None = None) -> FirstTokens:
    """After first tokens of prompts of so many tokens that came after so many ms, one a second."""
    first_tokens = FirstTokens()
    for place, (tokens, took_ms) in enumerate(points):
        now = expected(first_tokens, tokens, price=price, now_s=float(place))
        first_tokens.came(KEY, "m", now, tokens, took_ms, float(place))
    return first_tokens


def lasted(ms: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(int(ms * 1e6))
    return made


def test_before_the_first_token_it_is_what_the_cost_says_and_the_way() -> None:
    now = expected(FirstTokens(), price=cost(ready_ms=7, full_ms=300, prefill_ms=120), account=Account())
    assert (now.ready_ms, now.queue_ms, now.prefill_ms, now.rest_ms) == pytest.approx((7, 300, 120, 5))
    assert now.total_ms == pytest.approx(432)


def test_what_any_takes_is_told_from_what_a_token_takes() -> None:
    rng = random.Random(1)
    points = [(size, rng.gauss(30 + 0.025 * size, 3)) for size in (200, 300, 2000, 150, 3000, 250) * 8]
    first_tokens = learned(*points)
    for tokens in (100, 1000, 4000):
        assert expected(first_tokens, tokens).total_ms == pytest.approx(30 + 0.025 * tokens, rel=0.1)


def test_single_odd_first_tokens_do_not_count() -> None:
    points = [(200, 35.0), (2000, 80.0)] * 20
    odd = [(size, 20_000.0 if place % 13 == 9 else took_ms) for place, (size, took_ms) in enumerate(points)]
    assert expected(learned(*odd), 200).total_ms == pytest.approx(35, rel=0.2)


def test_a_change_is_followed() -> None:
    points = [(200, 35.0), (2000, 80.0)] * 30
    slower = [(size, 2 * took_ms) for size, took_ms in points]
    assert expected(learned(*points, *slower), 2000).total_ms == pytest.approx(160, rel=0.05)


def test_where_all_prompts_are_alike_a_token_takes_what_the_server_says() -> None:
    first_tokens = learned(*[(200, 40.0)] * 20, price=cost(prefill_ms=200 / 20))
    assert expected(first_tokens, 200).total_ms == pytest.approx(40)
    assert expected(first_tokens, 2000).total_ms == pytest.approx(40 + 1800 / 20, rel=0.05)


@pytest.mark.parametrize("price", [cost(ready_ms=500), cost(full_ms=500)])
def test_what_waits_for_a_model_or_a_place_says_nothing_of_others(price: Cost) -> None:
    first_tokens = learned((200, 900.0), (2000, 900.0), price=price)
    assert first_tokens.line(KEY, "m") is None


def test_it_comes_after_those_before_it_and_no_sooner_than_alone() -> None:
    first_tokens = learned(*[(200, 40.0), (2000, 85.0)] * 20)
    clock = FakeClock()
    ledger = Ledger(clock)
    alone = expected(first_tokens, 1000, now_s=clock())
    ledger.book(KEY, 1000, expected_ms=alone.total_ms)
    account = ledger.accounts[KEY]
    second = expected(first_tokens, 1000, account, now_s=clock())
    assert second.total_ms == pytest.approx(alone.total_ms + 25, rel=0.05)
    assert second.queue_ms == pytest.approx(25, rel=0.1)
    assert second.ahead_tokens == pytest.approx(1000, rel=0.1)
    clock.advance(0.05)
    assert expected(first_tokens, 1000, account, now_s=clock()).total_ms == pytest.approx(alone.total_ms)


def test_others_prompts_are_ahead_as_far_as_they_were_reported_and_are_not_yet_computed() -> None:
    first_tokens = learned(*[(200, 40.0), (2000, 85.0)] * 20)
    clock = FakeClock()
    ledger = Ledger(clock)
    ledger.report(KEY, Load(waiting=1, waiting_prompt_tokens=4000))
    account = ledger.accounts[KEY]
    assert expected(first_tokens, 1000, account, now_s=clock()).queue_ms == pytest.approx(100, rel=0.15)
    clock.advance(0.06)
    assert expected(first_tokens, 1000, account, now_s=clock()).queue_ms == pytest.approx(40, rel=0.15)


def test_what_is_computed_in_one_step_with_others_is_no_wait() -> None:
    first_tokens = learned(*[(200, 40.0), (2000, 85.0)] * 20)
    clock = FakeClock()
    ledger = Ledger(clock)
    ledger.report(KEY, Load(waiting=1, waiting_prompt_tokens=5000))
    account = ledger.accounts[KEY]
    unknown = expected(first_tokens, 1000, account, now_s=clock())
    assert unknown.queue_ms == pytest.approx(125, rel=0.15)
    known = first_tokens.expect(KEY, "m", 1000, cost(prefill_ms=33), account, 0.0, clock(), step_tokens=2000)
    assert known.queue_ms == pytest.approx(0.8 * unknown.queue_ms)
    assert known.prefill_ms == pytest.approx(unknown.prefill_ms + 0.2 * unknown.queue_ms)
    assert known.total_ms == pytest.approx(unknown.total_ms)


def test_parts_are_told_apart_as_the_engine_does() -> None:
    first_tokens = FirstTokens()
    timings = inference_pb2.Timings(load=lasted(1), queue=lasted(6), prefill=lasted(30))
    for at_s in range(20):
        now = expected(first_tokens, 100, price=cost(prefill_ms=5))
        first_tokens.came(KEY, "m", now, 100, 50.0, float(at_s))
        first_tokens.told(KEY, "m", now, 50.0, timings)
    now = expected(first_tokens, 100)
    assert (now.queue_ms, now.prefill_ms, now.rest_ms) == pytest.approx((6, 31, 13))
    assert now.total_ms == pytest.approx(50)


def test_each_server_and_model_has_its_own_and_what_is_gone_is_forgotten() -> None:
    first_tokens = learned((100, 50.0))
    assert first_tokens.line(OTHER, "m") is None and first_tokens.line(KEY, "n") is None
    first_tokens.keep([OTHER])
    assert first_tokens.line(KEY, "m") is None


class Core:
    """A made-up engine core with an H100's numbers: steps of so many prompt tokens at most, the next one's prompts
    taken in while one runs; a first token leaves once the server's loop comes to it."""

    STEP_MS, MS_PER_TOKEN, STEP_TOKENS = 9.0, 0.024, 2048

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.waiting: list[list[float]] = []  # number, tokens left

    def step(self) -> tuple[float, list[int]]:
        """How long it takes, in ms, and whose first tokens come of it."""
        room, done = float(self.STEP_TOKENS), []
        for each in self.waiting:
            taken = min(room, each[1])
            each[1] -= taken
            room -= taken
            if each[1] <= 0:
                done.append(int(each[0]))
        self.waiting = [each for each in self.waiting if each[1] > 0]
        return self.STEP_MS + self.MS_PER_TOKEN * (self.STEP_TOKENS - room), done

    def leaves_after_ms(self) -> float:
        """The step's outputs are passed on, and the loop has other things to do."""
        return self.STEP_MS + self._rng.uniform(4, 14)


def errors(per_s: float, requests: int = 1500) -> list[float]:
    """How far off predictions are, as shares: questions of some 200 tokens, a fifth of them of 2,000."""
    rng, clock = random.Random(7), FakeClock()
    core, ledger, first_tokens = Core(rng), Ledger(clock), FirstTokens()
    open_: dict[int, tuple[Booking, Expectation, int, float]] = {}
    off, began_s = [], clock()
    events: list[tuple[float, int, int]] = [(began_s, 0, 0), (began_s, 1, -1)]
    while events:
        at_s, what, number = heapq.heappop(events)
        clock.advance(at_s - clock())
        if what == 0:
            tokens = round(rng.uniform(1000, 3000) if rng.random() < 0.2 else rng.uniform(100, 300))
            now = first_tokens.expect(KEY, "m", tokens, cost(), ledger.accounts.get(KEY, NOTHING), 0.0, at_s)
            open_[number] = ledger.book(KEY, tokens, expected_ms=now.total_ms), now, tokens, at_s
            core.waiting.append([number, tokens])
            if number + 1 < requests:
                heapq.heappush(events, (at_s + rng.expovariate(per_s), 0, number + 1))
        elif what == 1:
            took_ms, done = core.step()
            for each in done:
                heapq.heappush(events, (at_s + (took_ms + core.leaves_after_ms()) / 1e3, 2, each))
            if len(open_) or events:
                heapq.heappush(events, (at_s + took_ms / 1e3, 1, -1))
        else:
            booking, now, tokens, sent_s = open_.pop(number)
            booking.first_token()
            waited_ms = (at_s - sent_s) * 1e3
            first_tokens.came(KEY, "m", now, tokens, waited_ms, at_s)
            if number > 100:
                off.append((now.total_ms - waited_ms) / waited_ms)
            if number == requests - 1:
                break
    return off


@pytest.mark.parametrize("per_s", [2.0, 15.0, 25.0])
def test_first_tokens_of_an_engine_that_works_in_steps_are_predicted(per_s: float) -> None:
    off = errors(per_s)
    assert statistics.median(map(abs, off)) < 0.15
    assert abs(statistics.median(off)) < 0.05
