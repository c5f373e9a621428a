"""The small rules: the index, backoff, when to write, timeouts."""

import random

import pytest

from discovery.codec import encode
from discovery.consul_http import CALL_TIMEOUT_S, duration_s, timeout_s
from discovery.endpoint import Endpoint, Load, ModelState, Residency
from discovery.index_rules import next_index
from discovery.write_rules import Written, write_due_s
from stoker_common.backoff import Backoff

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("asked", "answered", "following"),
    [(0, 7, 7), (7, 8, 8), (7, 7, 7), (7, 6, 0), (7, 0, 0), (0, 0, 1), (1, 0, 1), (0, -3, 1)],
)
def test_the_index_never_goes_back_and_is_never_below_one(asked: int, answered: int, following: int) -> None:
    assert next_index(asked, answered) == following


def test_backoff_doubles_to_its_limit_with_jitter_and_starts_again() -> None:
    backoff = Backoff(random.Random(3), 0.2, 3.0)
    delays = [backoff.delay_s() for _ in range(50)]
    for delay, most in zip(delays, [0.2, 0.4, 0.8, 1.6, *([3.0] * 46)], strict=True):
        assert most / 2 <= delay <= most
    assert len(set(delays)) == 50
    backoff.reset()
    assert backoff.delay_s() <= 0.2


def test_a_query_may_take_its_wait_and_a_sixteenth_and_two_seconds() -> None:
    assert timeout_s({"index": 3, "wait": "10s"}) == pytest.approx(12.625)
    assert timeout_s({"index": 3}) == pytest.approx(300 * 17 / 16 + 2)
    assert timeout_s({}) == CALL_TIMEOUT_S
    assert duration_s("1m30.5s") == 90.5


IDLE = Load()


def record(load: Load = IDLE, address: str = "h:1", epoch: str = "1", residency: str = "hot") -> Written:
    model = ModelState("m", Residency(residency), 2048)
    return Written(encode(Endpoint("s", address, "z", epoch, "sim", (model,), load=load)), 100.0)


def test_nothing_written_yet_is_due_at_once() -> None:
    assert write_due_s(None, record().record, 15.0) == 0.0


@pytest.mark.parametrize("change", [{"residency": "asleep"}, {"address": "h:2"}, {"epoch": "2"}])
def test_facts_are_due_at_once(change: dict[str, str]) -> None:
    assert write_due_s(record(), record(IDLE, **change).record, 15.0) == 0.0


def test_load_is_due_fifteen_seconds_after_the_last_write() -> None:
    assert write_due_s(record(), record(Load(utilization=0.5)).record, 15.0) == 115.0


def test_load_within_its_step_is_not_due() -> None:
    assert write_due_s(record(Load(utilization=0.46)), record(Load(utilization=0.54)).record, 15.0) is None
