from collections.abc import Callable

import pytest

from stoker.v1 import generation_pb2
from stoker.v1.ticket_pb2 import Claims, Ticket
from stoker_common.refusal import Code, Refusal
from stoker_common.tickets import TicketKeys, check_claims

KEY, OTHER = "k" * 32, "o" * 40
NOW_S = 1_700_000_000.0


def generation(**changes: object) -> generation_pb2.Generation:
    asked = generation_pb2.Generation(model="m", text="secret prompt", request_id="r1")
    asked.sampling.max_tokens = 100
    asked.tenant.id = "t1"
    for name, value in changes.items():
        setattr(asked, name, value)
    return asked


def claims() -> Claims:
    made = Claims(
        router="router-a", reservation=b"12345678", server="s", epoch="e", tenant="t1", model="m", request_id="r1"
    )
    made.max_output_tokens = 100
    made.max_request_bytes = generation().ByteSize()
    made.expires_at.FromNanoseconds(int((NOW_S + 10) * 1e9))
    return made


def refused(call: Callable[[], object]) -> tuple[Code, str]:
    with pytest.raises(Refusal) as caught:
        call()
    assert KEY not in caught.value.message and "secret" not in caught.value.message
    return caught.value.code, caught.value.reason


def test_a_ticket_says_what_was_claimed() -> None:
    keys = TicketKeys.parse(KEY)
    read = keys.read(keys.ticket(claims()))
    assert read == claims()
    check_claims(read, generation(), "s", "e", NOW_S)


def test_a_key_is_changed_while_all_runs() -> None:
    old, both, new = TicketKeys.parse(KEY), TicketKeys.parse(f"{OTHER},{KEY}"), TicketKeys.parse(OTHER)
    assert both.read(old.ticket(claims())) == claims()
    assert new.read(both.ticket(claims())) == claims()
    assert refused(lambda: new.read(old.ticket(claims()))) == (Code.UNAUTHENTICATED, "TICKET_INVALID")


def test_without_a_key_nothing_is_asked_for() -> None:
    none, keys = TicketKeys.parse(""), TicketKeys.parse(KEY)
    assert not none
    assert none.read(b"") is None
    assert none.read(none.ticket(claims())) == claims()
    assert none.read(keys.ticket(claims())) == claims()
    assert refused(lambda: keys.read(none.ticket(claims()))) == (Code.UNAUTHENTICATED, "TICKET_INVALID")
    assert refused(lambda: keys.read(b"")) == (Code.UNAUTHENTICATED, "TICKET_MISSING")


def test_every_byte_counts() -> None:
    keys = TicketKeys.parse(KEY)
    whole = Ticket.FromString(keys.ticket(claims()))
    for field in ("claims", "mac"):
        data: bytes = getattr(whole, field)
        for at in range(len(data)):
            changed = Ticket(claims=whole.claims, mac=whole.mac)
            setattr(changed, field, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert refused(lambda changed=changed: keys.read(changed.SerializeToString())) == (  # type: ignore[misc]
                Code.UNAUTHENTICATED,
                "TICKET_INVALID",
            )
    assert refused(lambda: keys.read(b"\xff\xff garbage"))[1] == "TICKET_INVALID"
    assert refused(lambda: keys.read(Ticket(claims=whole.claims).SerializeToString()))[1] == "TICKET_INVALID"


@pytest.mark.parametrize(
    ("changes", "server", "epoch", "after_s", "expected"),
    [
        ({}, "other", "e", 0, (Code.PERMISSION_DENIED, "TICKET_OTHER_SERVER")),
        ({}, "s", "next life", 0, (Code.PERMISSION_DENIED, "TICKET_OTHER_SERVER")),
        ({}, "s", "e", 16, (Code.UNAUTHENTICATED, "TICKET_EXPIRED")),
        ({"model": "n"}, "s", "e", 0, (Code.PERMISSION_DENIED, "TICKET_OTHER_REQUEST")),
        ({"lora_adapter": "n"}, "s", "e", 0, (Code.PERMISSION_DENIED, "TICKET_OTHER_REQUEST")),
        ({"request_id": "r2"}, "s", "e", 0, (Code.PERMISSION_DENIED, "TICKET_OTHER_REQUEST")),
        ({"text": "secret " * 50}, "s", "e", 0, (Code.PERMISSION_DENIED, "TICKET_OTHER_REQUEST")),
    ],
)
def test_what_it_does_not_allow(
    changes: dict[str, object], server: str, epoch: str, after_s: float, expected: tuple[Code, str]
) -> None:
    assert refused(lambda: check_claims(claims(), generation(**changes), server, epoch, NOW_S + after_s)) == expected


def test_another_tenant_or_more_tokens() -> None:
    asked = generation()
    asked.tenant.id = "t2"
    assert refused(lambda: check_claims(claims(), asked, "s", "e", NOW_S))[1] == "TICKET_OTHER_REQUEST"
    for tokens, n in ((101, 1), (60, 2), (0, 1)):
        asked = generation()
        asked.sampling.max_tokens, asked.sampling.n = tokens, n
        assert refused(lambda asked=asked: check_claims(claims(), asked, "s", "e", NOW_S))[1] == "TICKET_OTHER_REQUEST"  # type: ignore[misc]
    asked = generation()
    asked.sampling.ClearField("max_tokens")
    assert refused(lambda: check_claims(claims(), asked, "s", "e", NOW_S))[1] == "TICKET_OTHER_REQUEST"


def test_a_ticket_for_an_adapter_lets_in_who_asks_for_it_by_its_base() -> None:
    asked = generation(model="base", lora_adapter="m")
    ticket = claims()
    ticket.max_request_bytes = asked.ByteSize()
    check_claims(ticket, asked, "s", "e", NOW_S)


def test_a_routers_own_ticket_does_not_end() -> None:
    own = Claims(server="s", epoch="e", tenant="t1", model="m", request_id="r1")
    check_claims(own, generation(), "s", "e", NOW_S + 1e9)


def test_keys_are_long_and_do_not_show() -> None:
    with pytest.raises(ValueError, match="at least 32") as caught:
        TicketKeys.parse(f"{KEY},short")
    assert KEY not in str(caught.value) and "short" not in str(caught.value)
    assert KEY not in repr(TicketKeys.parse(KEY))
