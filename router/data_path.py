"""Asks the endpoints that the catalog doubts: an agent forgets and gossip is slow, so the data path decides."""

import asyncio
import logging
import random
from collections.abc import Callable

from discovery.endpoint import Endpoint
from router.attempt import Transport
from router.fleet import Fleet
from router.ledger import Key

log = logging.getLogger(__name__)


class DataPath:
    """Checks doubtful endpoints until the catalog is sure of them again or they are gone.

    `forget` is called with each that does not answer: the watcher drops it if the catalog has lost it, too.
    """

    def __init__(
        self,
        fleet: Fleet,
        transport: Transport,
        forget: Callable[[Endpoint], None],
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
        async with asyncio.TaskGroup() as tasks:
            for key in self._fleet.doubtful():
                tasks.create_task(self._check_one(key))

    async def _check_one(self, key: Key) -> None:
        member = self._fleet.snapshot.members.get(key)
        if member is None:
            return
        answers = await self._transport.answers(member.endpoint, self._timeout_s)
        if answers != member.answers:
            log.warning(
                "data path of a doubtful server: %s",
                "it answers, kept" if answers else "no answer, taken out",
                extra={"server": key[0], "epoch": key[1], "catalog_state": member.catalog_state.value},
            )
        self._fleet.data_path(key, answers=answers)
        if not answers:
            self._forget(member.endpoint)
