"""What zones keep of their load, and when one panics."""

import pytest

from router.zones import RISE_S, Zones
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.unit

A1, A2, A3, A4, B1 = (("a-1", "e"), ("a-2", "e"), ("a-3", "e"), ("a-4", "e"), ("b-1", "e"))


def zones(clock: FakeClock) -> Zones:
    found = Zones(clock)
    found.keep({A1: "a", A2: "a", A3: "a", A4: "a", B1: "b"})
    found.count(lambda key: False)
    return found


def test_a_zone_keeps_all_until_more_is_out_than_it_has_to_spare_and_gets_it_back_slowly() -> None:
    clock = FakeClock()
    found = zones(clock)
    found.count(lambda key: key == A1)
    assert found.share("a") == 1.0
    found.count(lambda key: key in (A1, A2))
    assert found.shares() == {"a": pytest.approx(0.7), "b": 1.0}
    found.count(lambda key: False)
    assert found.share("a") == pytest.approx(0.7)
    clock.advance(0.1 * RISE_S)
    assert found.share("a") == pytest.approx(0.8)
    clock.advance(RISE_S)
    assert found.share("a") == 1.0


def test_a_zone_panics_when_less_than_half_of_it_is_well_and_no_other_makes_up_for_it() -> None:
    found = zones(FakeClock())
    found.count(lambda key: key in (A1, A2, A3))
    assert not found.panics(A1), "the other zone is well"
    found.count(lambda key: key in (A1, A2, A3, B1))
    assert found.panics(A1) and found.panics(A4) and found.panics(B1)
    found.count(lambda key: key in (A1, A2, B1))
    assert not found.panics(A1) and found.panics(B1)


def test_what_is_gone_has_no_zone_and_no_share() -> None:
    found = zones(FakeClock())
    assert found.beside(A2) == [A1, A2, A3, A4] and found.of(B1) == "b"
    found.keep({A1: "a"})
    found.count(lambda key: key == A1)
    assert found.of(B1) is None and found.beside(B1) == [] and not found.panics(B1)
    assert found.shares() == {"a": 0.0}
