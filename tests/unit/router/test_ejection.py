import random

import pytest

from router.ejection import Breakers, BreakerState, Cause, EjectionRules
from router.ledger import Key
from tests.fakes.clock import FakeClock

KEY = ("a-1", "e1")
RULES = EjectionRules(consecutive_failures=3, base_s=30, max_s=70, jitter=0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breakers(clock: FakeClock) -> Breakers:
    return Breakers(RULES, clock, random.Random(1))


def eject(breakers: Breakers) -> None:
    breakers.failed(KEY, dead_link=True)


def test_an_unknown_endpoint_is_alive(breakers: Breakers) -> None:
    assert breakers.state(KEY) is BreakerState.ALIVE
    assert not breakers.refuses(KEY)


def test_failures_in_a_row_eject_and_a_success_between_them_forgives(breakers: Breakers) -> None:
    for _ in range(2):
        breakers.failed(KEY, dead_link=False)
    breakers.succeeded(KEY)
    for _ in range(2):
        breakers.failed(KEY, dead_link=False)
    assert breakers.state(KEY) is BreakerState.ALIVE
    breakers.failed(KEY, dead_link=False)
    assert breakers.state(KEY) is BreakerState.EJECTED
    assert breakers.refuses(KEY)


def test_a_first_token_does_not_forgive_a_server_that_breaks_every_stream(breakers: Breakers) -> None:
    for _ in range(3):
        breakers.answered(KEY)
        breakers.failed(KEY, dead_link=False)
    assert breakers.state(KEY) is BreakerState.EJECTED


def test_a_dead_link_ejects_at_once(breakers: Breakers) -> None:
    eject(breakers)
    assert breakers.state(KEY) is BreakerState.EJECTED


def test_when_the_ejection_ends_one_request_probes(breakers: Breakers, clock: FakeClock) -> None:
    eject(breakers)
    clock.advance(29.9)
    assert breakers.refuses(KEY)
    assert breakers.ejected_for_s(KEY) == pytest.approx(0.1)
    clock.advance(0.2)
    assert not breakers.refuses(KEY)
    breakers.dispatched(KEY)
    assert breakers.state(KEY) is BreakerState.PROBING
    assert breakers.refuses(KEY)


def test_a_probe_that_answers_lets_the_endpoint_back_in(breakers: Breakers, clock: FakeClock) -> None:
    eject(breakers)
    clock.advance(31)
    breakers.dispatched(KEY)
    breakers.answered(KEY)
    assert breakers.state(KEY) is BreakerState.ALIVE


@pytest.mark.parametrize(("ejections", "lasts_s"), [(1, 30), (2, 60), (3, 70), (4, 70)])
def test_each_failed_probe_ejects_for_longer_up_to_a_limit(
    breakers: Breakers, clock: FakeClock, ejections: int, lasts_s: float
) -> None:
    eject(breakers)
    for _ in range(ejections - 1):
        clock.advance(breakers.ejected_for_s(KEY))
        breakers.dispatched(KEY)
        breakers.failed(KEY, dead_link=False)
    assert breakers.ejected_for_s(KEY) == pytest.approx(lasts_s)


def test_a_probe_whose_caller_went_away_leaves_the_next_request_to_probe(breakers: Breakers, clock: FakeClock) -> None:
    eject(breakers)
    clock.advance(31)
    breakers.dispatched(KEY)
    breakers.undecided(KEY)
    assert breakers.state(KEY) is BreakerState.EJECTED
    assert not breakers.refuses(KEY)


def test_late_failures_of_an_ejected_endpoint_do_not_lengthen_its_ejection(breakers: Breakers) -> None:
    eject(breakers)
    for _ in range(10):
        breakers.failed(KEY, dead_link=True)
    assert breakers.ejected_for_s(KEY) == pytest.approx(30)


def test_a_new_epoch_is_a_new_server(breakers: Breakers) -> None:
    eject(breakers)
    assert not breakers.refuses(("a-1", "e2"))


def test_endpoints_that_are_gone_are_forgotten(breakers: Breakers) -> None:
    eject(breakers)
    breakers.keep({})
    assert breakers.state(KEY) is BreakerState.ALIVE


def returned(breakers: Breakers, clock: FakeClock, key: Key = KEY) -> None:
    """Wait an ejection out, and let the probe answer."""
    clock.advance(breakers.ejected_for_s(key))
    breakers.dispatched(key)
    breakers.answered(key)


def test_half_of_twenty_requests_failing_ejects_though_never_three_in_a_row(breakers: Breakers) -> None:
    for _ in range(9):
        breakers.failed(KEY, dead_link=False)
        breakers.succeeded(KEY)
    breakers.failed(KEY, dead_link=False)
    assert breakers.state(KEY) is BreakerState.ALIVE
    breakers.failed(KEY, dead_link=False)
    assert breakers.state(KEY) is BreakerState.EJECTED
    assert breakers.cause(KEY) == "failure rate"


def test_a_third_of_the_requests_failing_is_left_to_retries(breakers: Breakers) -> None:
    for _ in range(30):
        breakers.failed(KEY, dead_link=False)
        breakers.succeeded(KEY)
        breakers.succeeded(KEY)
    assert breakers.state(KEY) is BreakerState.ALIVE


def test_far_slower_than_predicted_and_than_the_others_ejects(breakers: Breakers) -> None:
    for _ in range(5):
        breakers.timed(("a-2", "e1"), 300, 200)
        breakers.timed(KEY, 2000, 200)
    assert breakers.state(KEY) is BreakerState.EJECTED
    assert breakers.cause(KEY) == "slow"
    assert breakers.state(("a-2", "e1")) is BreakerState.ALIVE


def test_what_was_sent_before_the_ejection_tells_nothing_after_it(breakers: Breakers, clock: FakeClock) -> None:
    before_s = clock()
    clock.advance(1)
    eject(breakers)
    breakers.succeeded(KEY, before_s)
    assert breakers.state(KEY) is BreakerState.EJECTED
    clock.advance(30)
    breakers.dispatched(KEY)
    for tell in (breakers.succeeded, breakers.answered, breakers.undecided):
        tell(KEY, before_s)
        assert breakers.state(KEY) is BreakerState.PROBING
    breakers.failed(KEY, dead_link=True, since_s=before_s)
    assert breakers.state(KEY) is BreakerState.PROBING
    breakers.answered(KEY, clock())
    breakers.failed(KEY, dead_link=True, since_s=before_s)
    assert breakers.state(KEY) is BreakerState.ALIVE


def test_a_request_that_went_there_in_a_panic_and_was_answered_ends_the_ejection(
    breakers: Breakers, clock: FakeClock
) -> None:
    eject(breakers)
    clock.advance(1)
    breakers.dispatched(KEY)
    breakers.succeeded(KEY, clock())
    assert breakers.state(KEY) is BreakerState.ALIVE


def test_the_return_is_slow(breakers: Breakers, clock: FakeClock) -> None:
    assert breakers.share(KEY) == 1
    eject(breakers)
    returned(breakers, clock)
    assert breakers.share(KEY) == pytest.approx(0.1)
    clock.advance(5)
    assert breakers.share(KEY) == pytest.approx(0.55)
    clock.advance(5)
    assert breakers.share(KEY) == 1


def test_a_link_that_is_up_again_is_probed_at_once_and_one_that_flaps_later_and_later(
    breakers: Breakers, clock: FakeClock
) -> None:
    breakers.lost(KEY)
    breakers.reached(KEY)
    assert not breakers.refuses(KEY)
    returned(breakers, clock)
    probed = 0
    for _ in range(20):  # down for 3 s, up for 7
        breakers.lost(KEY)
        clock.advance(3)
        breakers.reached(KEY)
        for _ in range(7):
            clock.advance(1)
            if not breakers.refuses(KEY):
                probed += 1
                breakers.dispatched(KEY)
                breakers.answered(KEY)
    assert probed <= 20 * 7 / 4


def test_being_well_for_a_while_is_forgiven(breakers: Breakers, clock: FakeClock) -> None:
    eject(breakers)
    returned(breakers, clock)
    clock.advance(1)
    eject(breakers)
    assert breakers.ejected_for_s(KEY) == pytest.approx(60)
    returned(breakers, clock)
    clock.advance(61)
    eject(breakers)
    assert breakers.ejected_for_s(KEY) == pytest.approx(30)


def test_a_link_that_comes_back_does_not_end_an_ejection_for_failures(breakers: Breakers) -> None:
    for _ in range(3):
        breakers.failed(KEY, dead_link=False)
    breakers.lost(KEY)
    breakers.reached(KEY)
    assert breakers.refuses(KEY)


ZONE_A: list[Key] = [(f"a-{i}", "e") for i in range(4)]
ZONE_B: list[Key] = [(f"b-{i}", "e") for i in range(4)]


def two_zones(breakers: Breakers) -> None:
    breakers.keep({**dict.fromkeys(ZONE_A, "a"), **dict.fromkeys(ZONE_B, "b")})


def suspect(breakers: Breakers, *keys: Key) -> None:
    for key in keys:
        for _ in range(3):
            breakers.failed(key, dead_link=False)


def test_suspicion_takes_out_half_of_a_zone_at_most_and_facts_take_all(breakers: Breakers) -> None:
    two_zones(breakers)
    suspect(breakers, *ZONE_A)
    assert [breakers.state(key) is BreakerState.EJECTED for key in ZONE_A] == [True, True, False, False]
    for key in ZONE_A:
        breakers.lost(key)
    assert all(breakers.state(key) is BreakerState.EJECTED for key in ZONE_A)
    assert breakers.ejections == {("a", Cause.FAILURES): 2, ("a", Cause.LINK): 2}


def test_a_zone_keeps_the_load_that_its_healthy_servers_can_carry_and_gets_it_back_slowly(
    breakers: Breakers, clock: FakeClock
) -> None:
    two_zones(breakers)
    breakers.lost(ZONE_A[0])
    assert breakers.zone_share("a") == 1  # 1.4 x 3/4
    for key in ZONE_A[1:3]:
        breakers.lost(key)
    assert breakers.zone_share("a") == pytest.approx(0.35)
    assert breakers.zone_share("b") == 1
    for key in ZONE_A[:3]:
        returned(breakers, clock, key)
    assert breakers.zone_share("a") < 0.5
    clock.advance(5)
    assert 0.5 < breakers.zone_share("a") < 1
    clock.advance(5)
    assert breakers.zone_share("a") == 1


def test_panic_ignores_suspicion_but_no_fact_and_only_where_no_other_zone_helps(breakers: Breakers) -> None:
    two_zones(breakers)
    suspect(breakers, *ZONE_A[:2])
    breakers.lost(ZONE_A[2])
    assert not any(breakers.doubts(key) for key in ZONE_A)
    for key in ZONE_B:
        breakers.lost(key)
    assert [breakers.doubts(key) for key in ZONE_A[:3]] == [True, True, False]


def test_an_engine_that_stands_still_is_out_until_it_moves(breakers: Breakers) -> None:
    breakers.lost(KEY, Cause.STALLED)
    assert breakers.cause(KEY) == "engine stalled"
    assert breakers.refuses(KEY)
    breakers.reached(KEY)
    assert not breakers.refuses(KEY)


def test_a_server_that_crawls_is_out_until_its_time_ends_and_longer_while_it_still_does(
    breakers: Breakers, clock: FakeClock
) -> None:
    assert breakers.crawls(KEY)
    assert breakers.cause(KEY) == "slow"
    clock.advance(29.0)
    assert breakers.crawls(KEY)
    assert breakers.ejected_for_s(KEY) == pytest.approx(1.0)
    clock.advance(2.0)
    assert breakers.crawls(KEY)
    assert breakers.ejected_for_s(KEY) == pytest.approx(60.0)


def test_one_that_crawls_stays_when_half_of_its_zone_is_out(breakers: Breakers) -> None:
    breakers.keep({("a-1", "e1"): "a", ("a-2", "e1"): "a", ("a-3", "e1"): "a"})
    assert breakers.crawls(("a-1", "e1"))
    assert not breakers.crawls(("a-2", "e1"))
    assert breakers.state(("a-2", "e1")) is BreakerState.ALIVE
