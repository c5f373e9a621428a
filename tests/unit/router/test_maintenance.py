"""Servers that an operator took out: emptied at once or after a grace, and only of what can go elsewhere."""

from contextlib import ExitStack

import pytest

from discovery.catalog import CatalogState
from discovery.endpoint import Endpoint
from router.errors import Fault
from router.fleet import Fleet
from router.interrupt import Interrupt
from router.ledger import Ledger
from router.maintenance import Maintenance
from router.running import Running
from stoker.v1 import generation_pb2
from stoker_common.transcript import Transcript
from tests.fakes.clock import FakeClock
from tests.unit.router.builders import endpoint, key, view

OUT, IN = endpoint("a-1"), endpoint("a-2")


class Zone:
    """Two servers with a stream on each, and one on the first that cannot go elsewhere."""

    def __init__(self, grace_s: float, held: ExitStack) -> None:
        self.clock = FakeClock()
        self.fleet = Fleet(Ledger(self.clock), lambda members: None)
        self.running = Running()
        self.moves, self.stays, self.elsewhere = (
            self._attempt(server, name, held) for server, name in ((OUT, "moves"), (OUT, "stays"), (IN, "elsewhere"))
        )
        self.maintenance = Maintenance(
            self.fleet, self.running, lambda _, attempt: attempt.generation.model != "stays", self.clock, grace_s
        )
        self.maintain(on=False)

    def _attempt(self, server: Endpoint, name: str, held: ExitStack) -> Interrupt:
        asked = generation_pb2.Generation(model=name)
        return held.enter_context(self.running.attempt(key(server), asked, Transcript()))

    def maintain(self, *, on: bool) -> None:
        """What `consul maint` does."""
        self.fleet.publish(view([OUT, IN], {"a-1": CatalogState.MAINTENANCE} if on else {}))

    def moved(self) -> list[bool]:
        """Whether each of the streams was told to go on elsewhere."""
        self.maintenance.look()
        return [each.error is not None for each in (self.moves, self.stays, self.elsewhere)]


def test_at_once_what_can_go_elsewhere_does_and_the_rest_stays() -> None:
    with ExitStack() as held:
        zone = Zone(0.0, held)
        assert zone.moved() == [False, False, False]
        zone.maintain(on=True)
        assert zone.moved() == [True, False, False]
        assert zone.moves.error is not None
        assert zone.moves.error.fault is Fault.MOVED


@pytest.mark.parametrize("grace_s", [3.0, 60.0])
def test_the_grace_is_kept(grace_s: float) -> None:
    with ExitStack() as held:
        zone = Zone(grace_s, held)
        zone.maintain(on=True)
        assert zone.moved() == [False, False, False]
        zone.clock.advance(grace_s - 0.1)
        assert zone.moved() == [False, False, False]
        zone.clock.advance(0.2)
        assert zone.moved() == [True, False, False]


def test_a_maintenance_that_ends_within_the_grace_moves_nothing_and_the_next_has_a_grace_of_its_own() -> None:
    with ExitStack() as held:
        zone = Zone(3.0, held)
        zone.maintain(on=True)
        zone.moved()
        zone.clock.advance(2.0)
        zone.maintain(on=False)
        zone.moved()
        zone.clock.advance(2.0)
        zone.maintain(on=True)
        assert zone.moved() == [False, False, False]
        zone.clock.advance(3.1)
        assert zone.moved() == [True, False, False]
