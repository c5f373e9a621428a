import pytest

from discovery.endpoint import Load
from router.ledger import Account, Ledger
from router.room import RoomRules, Rooms
from stoker_common.refusal import Refusal, exhausted
from tests.fakes.clock import FakeClock
from tests.unit.router.builders import endpoint, key

A1 = endpoint("a-1", max_streams=8)
NOW_S = 1000.0


@pytest.mark.parametrize(
    ("account", "full"),
    [
        (Account(), False),
        (Account(own_streams=9), False),
        (Account(own_streams=10), True),
        (Account(own_streams=5, others_streams=5, reported_at_s=NOW_S), True),
        (Account(own_streams=5, others_streams=5, reported_at_s=NOW_S - 3), False),
        (Account(own_streams=6, reported_at_s=NOW_S, load=Load(running=4, waiting=2, kv_usage=0.95)), True),
        (Account(own_streams=6, reported_at_s=NOW_S, load=Load(running=4, waiting=2, kv_usage=0.5)), False),
        (Account(own_streams=6, reported_at_s=NOW_S, load=Load(running=6, kv_usage=0.95)), False),
        (Account(own_streams=6, reported_at_s=NOW_S - 3, load=Load(running=4, waiting=2, kv_usage=0.95)), False),
    ],
    ids=[
        "idle",
        "batch full, one may wait",
        "two wait",
        "others' streams",
        "others' streams, long ago",
        "KV cache full",
        "waiting for its prefill only",
        "KV cache nearly full, nobody waits",
        "KV cache full long ago",
    ],
)
def test_full(account: Account, full: bool) -> None:
    clock = FakeClock(NOW_S)
    rooms = Rooms(RoomRules(waiting_per_server=2), Ledger(clock), clock)
    assert rooms.full(A1, account, NOW_S) is full


def overloaded(retry_after_s: float | None) -> Refusal:
    return exhausted("many wait", reason="SERVER_OVERLOADED", retry_after_s=retry_after_s)


def test_a_server_that_is_overloaded_is_left_alone_for_as_long_as_it_says() -> None:
    clock = FakeClock()
    rooms = Rooms(RoomRules(), Ledger(clock), clock)
    rooms.refused(key(A1), overloaded(1.5))
    assert rooms.full(A1, Account(), clock())
    assert rooms.overloaded_now() == {key(A1)}
    assert rooms.changes_at_s([key(A1)]) == clock() + 1.5
    clock.advance(1.5)
    assert not rooms.full(A1, Account(), clock())
    assert rooms.overloaded_now() == set()
    assert rooms.changes_at_s([key(A1)]) is None


@pytest.mark.parametrize(("says_s", "for_s"), [(None, 0.1), (0.0, 0.1), (1e6, 5.0)])
def test_but_not_for_ever(says_s: float | None, for_s: float) -> None:
    clock = FakeClock()
    rooms = Rooms(RoomRules(), Ledger(clock), clock)
    rooms.refused(key(A1), overloaded(says_s))
    assert rooms.changes_at_s([key(A1)]) == pytest.approx(clock() + for_s)


def test_other_refusals_say_nothing_of_its_room() -> None:
    clock = FakeClock()
    rooms = Rooms(RoomRules(), Ledger(clock), clock)
    rooms.refused(key(A1), exhausted("no room for the model", reason="NO_ROOM", retry_after_s=3.0))
    assert not rooms.overloaded_now()


def test_others_streams_are_believed_until_their_report_is_old() -> None:
    clock = FakeClock()
    ledger = Ledger(clock)
    rooms = Rooms(RoomRules(trusted_s=2.0), ledger, clock)
    ledger.report(key(A1), Load(running=50))
    assert rooms.full(A1, ledger.accounts[key(A1)], clock())
    assert rooms.changes_at_s([key(A1)]) == clock() + 2.0
