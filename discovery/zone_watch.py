"""Follows one zone's catalog with blocking queries and keeps its view."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from discovery.agent_api import AgentApi, Answer
from discovery.catalog import CatalogState, ZoneView
from discovery.codec import SERVICE
from discovery.consul_answer import Reported, disbelief, read_answer
from discovery.errors import CatalogError
from discovery.index_rules import next_index
from discovery.merge import fail, forget, merge
from stoker_common.backoff import Backoff

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatcherTiming:
    """How a watcher paces itself, in seconds.

    `wait_s`: how long a query blocks, and so how often an unchanged view is confirmed and how soon a hang shows.
    `gap_s`: between two queries, so that a registration storm is read in batches. `max_missing`: entries a zone keeps
    though the catalog lost them.
    """

    wait_s: float = 10.0
    gap_s: float = 0.02
    zones_every_s: float = 5.0
    retry_first_s: float = 0.1
    retry_most_s: float = 3.0
    max_missing: int = 256


class ZoneWatch:
    """One zone's view and the loop that keeps it.

    Counters for metrics: `answers` (believed), `doubted` (not believed), `failures` (no answer), `undecodable` (records
    in the last answer that could not be read), `dropped` (missing entries given up for want of room).
    """

    def __init__(
        self,
        agent: AgentApi,
        zone: str,
        changed: Callable[[ZoneView], None],
        backoff: Backoff,
        clock: Callable[[], float],
        timing: WatcherTiming,
    ) -> None:
        self.view = ZoneView(zone)
        self.answers = self.doubted = self.failures = self.undecodable = self.dropped = 0
        self._agent = agent
        self._changed = changed
        self._backoff = backoff
        self._clock = clock
        self._timing = timing
        self._index = 0
        self._reports: Mapping[str, Reported] = {}

    async def run(self) -> None:
        """Follow the zone until cancelled; no outage ends it."""
        while True:
            asked, asked_at_s = self._index, self._clock()
            try:
                answer = await self._agent.services(SERVICE, self.view.zone, asked, self._timing.wait_s)
                self._take(answer)
            except CatalogError as error:
                self.failures += 1
                # The agent may come back with other indexes, and a query with a later one than its would block.
                self._index = 0
                self._show(fail(self.view, str(error)))
                await asyncio.sleep(self._backoff.delay_s())
                continue
            blocked = self._clock() - asked_at_s >= self._timing.wait_s / 2
            if self._index > asked or (self._index == asked and blocked and asked):
                self._backoff.reset()
                await asyncio.sleep(self._timing.gap_s)
            else:
                # The index went backwards, nobody leads, or the query did not block: nothing to gain by asking at once.
                await asyncio.sleep(self._backoff.delay_s())

    def forget(self, lives: Collection[tuple[str, str]]) -> None:
        """See Watcher."""
        view = forget(self.view, lives)
        if view is not self.view:
            gone = sorted(self.view.entries.keys() - view.entries.keys())
            log.info("forgot missing servers", extra={"zone": view.zone, "servers": gone[:20], "count": len(gone)})
            self._show(view)

    def _take(self, answer: Answer) -> None:
        reports = read_answer(answer, self.view.zone, self._reports)
        doubt = disbelief(answer)
        if doubt:
            self.doubted += 1
            self._index = 0
        else:
            self.answers += 1
            self._index = next_index(self._index, answer.index)
        self._note_bad(reports)
        self._reports = reports
        view = merge(self.view, reports, doubt, self._clock(), self._timing.max_missing)
        dropped = len(self.view.entries.keys() - view.entries.keys() - _in(self.view, CatalogState.LEAVING))
        if dropped:
            self.dropped += dropped
            log.warning(
                "more servers are missing than are kept; gave up those missing longest",
                extra={"zone": view.zone, "dropped": dropped, "max_missing": self._timing.max_missing},
            )
        self._show(view)

    def _note_bad(self, reports: Mapping[str, Reported]) -> None:
        bad = {server: report.error for server, report in reports.items() if report.error}
        for server, error in bad.items():
            known = self._reports.get(server)
            if known is None or not known.error:
                log.warning(
                    "a server's record cannot be read; its last good one stays: %s",
                    ascii(error)[:200],
                    extra={"zone": self.view.zone, "server": ascii(server)[:140]},
                )
        self.undecodable = len(bad)

    def _show(self, view: ZoneView) -> None:
        before, self.view = self.view, view
        if view.error and not before.error:
            log.warning("the catalog cannot be read; keeping what is known: %s", view.error, extra={"zone": view.zone})
        elif before.error and not view.error:
            log.info("the catalog can be read again", extra={"zone": view.zone})
        newly = _in(view, CatalogState.MISSING) - _in(before, CatalogState.MISSING)
        if newly:
            log.warning(
                "servers are missing from the catalog", extra={"zone": view.zone, "servers": sorted(newly)[:20]}
            )
        if view != before:
            self._changed(view)


def _in(view: ZoneView, state: CatalogState) -> set[str]:
    return {name for name, entry in view.entries.items() if entry.state is state}
