from discovery.endpoint import Endpoint
from model_server.tickets import TicketCheck
from stoker_common.refusal import Code
from stoker_common.tickets import TicketKeys
from tests.fakes.clock import FakeClock
from tests.unit.stoker_common.test_tickets import KEY, NOW_S, claims, generation, refused

HERE = Endpoint("s", "h:1", "z", "e", "sim", ())


def test_a_clients_ticket_is_good_once() -> None:
    clock, keys = FakeClock(NOW_S), TicketKeys.parse(KEY)
    check = TicketCheck(keys, lambda: HERE, clock)
    ticket = keys.ticket(claims())
    assert check.admit(ticket, generation()) == claims()
    assert refused(lambda: check.admit(ticket, generation())) == (Code.PERMISSION_DENIED, "TICKET_USED")
    clock.advance(100)
    assert refused(lambda: check.admit(ticket, generation())) == (Code.UNAUTHENTICATED, "TICKET_EXPIRED")


def test_what_was_used_is_forgotten_when_it_has_ended() -> None:
    clock, keys = FakeClock(NOW_S), TicketKeys.parse(KEY)
    check = TicketCheck(keys, lambda: HERE, clock)
    for i in range(1000):
        claimed = claims()
        claimed.reservation = i.to_bytes(8, "big")
        claimed.expires_at.FromNanoseconds(int((clock() + 10) * 1e9))
        check.admit(keys.ticket(claimed), generation())
        clock.advance(1)
    assert len(check._used) <= 72


def test_a_routers_ticket_is_good_as_often_as_it_comes() -> None:
    keys = TicketKeys.parse(KEY)
    check = TicketCheck(keys, lambda: HERE, FakeClock(NOW_S))
    claimed = claims()
    claimed.ClearField("reservation")
    for _ in range(3):
        check.admit(keys.ticket(claimed), generation())


def test_without_a_key_a_ticket_forbids_nothing() -> None:
    check = TicketCheck(TicketKeys(), lambda: HERE, FakeClock(NOW_S + 1000))
    other = generation(request_id="r2", model="n")
    for _ in range(2):
        assert check.admit(TicketKeys().ticket(claims()), other) == claims()
    assert check.admit(b"", other) is None
