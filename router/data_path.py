"""Asks the endpoints that the catalog doubts: an agent forgets and gossip is slow, so the data path decides."""

import asyncio
import logging
import random
from collections.abc import Callable, Collection

from discovery.endpoint import Endpoint
from router.attempt import Transport
from router.fleet import Fleet
from router.snapshot import Member

log = logging.getLogger(__name__)


class DataPath:
    """Checks doubtful endpoints until the catalog is sure of them again or they are gone.

    `forget` is called with those that do not answer: the watcher drops what the catalog has lost, too. What comes back
    at the same time is taken at once: a whole fleet that is gone costs the loop as little as one server.
    """

    def __init__(
        self,
        fleet: Fleet,
        transport: Transport,
        forget: Callable[[Collection[Endpoint]], None],
        *,
        rng: random.Random,
        interval_s: float = 1.0,
        timeout_s: float = 1.0,
    ) -> None:
        self._fleet = fleet
        self._transport = transport
        self._forget = forget
        self._rng = rng
        self._interval_s = interval_s
        self._timeout_s = timeout_s

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(self._interval_s * self._rng.uniform(0.8, 1.2))

    async def check(self) -> None:
        """Check each doubtful endpoint once, all at the same time."""
        members = self._fleet.snapshot.members
        async with asyncio.TaskGroup() as tasks:
            asked = {tasks.create_task(self._ask(members[key])) for key in self._fleet.doubtful()}
            while asked:
                done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                self._take([task.result() for task in done])

    async def _ask(self, member: Member) -> tuple[Member, bool]:
        return member, await self._transport.answers(member.endpoint, self._timeout_s)

    def _take(self, told: Collection[tuple[Member, bool]]) -> None:
        for member, answers in told:
            if answers != member.answers:
                server, epoch = member.key
                log.warning(
                    "data path of a doubtful server: %s",
                    "it answers, kept" if answers else "no answer, taken out",
                    extra={"server": server, "epoch": epoch, "catalog_state": member.catalog_state.value},
                )
        self._fleet.data_path({member.key: answers for member, answers in told})
        silent = [member.endpoint for member, answers in told if not answers]
        if silent:
            self._forget(silent)
