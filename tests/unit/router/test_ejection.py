import random

import pytest

from router.ejection import Breakers, BreakerState, EjectionRules
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
    breakers.keep([])
    assert breakers.state(KEY) is BreakerState.ALIVE
