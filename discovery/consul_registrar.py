"""Keeps one server's record and its TTL check in Consul, through any outage, until the server leaves."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from discovery.agent_api import AgentApi, TtlCheck
from discovery.catalog_text import escape
from discovery.codec import SERVICE, ServiceRecord, encode
from discovery.endpoint import Endpoint, Load
from discovery.errors import CatalogError
from discovery.write_rules import Written, write_due_s
from stoker_common.backoff import Backoff

log = logging.getLogger(__name__)

# The output of a check travels in a URL; a line for operators needs no more.
_MAX_NOTE = 300


@dataclass(frozen=True, slots=True)
class RegistrarTiming:
    """How often a registrar does what, in seconds.

    `ttl_s` with a pass every third of it forgives two lost passes. `load_every_s` bounds Raft writes at 1/15 = 0.067 a
    second and server (the budget is 0.1). `settle_s`: a blocking query wakes within milliseconds, and another zone's
    within a second, so watchers have seen the leaving mark by then. `deregister_after_s`: a server that restarts, or an
    agent that is replaced, is back within five minutes under the same id; the dead of an autoscaled fleet must not
    pile up.
    """

    ttl_s: float = 10.0
    pass_every_s: float = 3.0
    load_every_s: float = 15.0
    settle_s: float = 1.5
    leave_within_s: float = 6.0
    deregister_after_s: float = 300.0
    retry_first_s: float = 0.2
    retry_most_s: float = 3.0


class Encode(Protocol):
    """How an endpoint is written."""

    def __call__(self, endpoint: Endpoint, *, leaving: str | None = None) -> ServiceRecord:
        """See `codec.encode`."""


@dataclass(frozen=True, slots=True)
class Form:
    """What is registered: a model server unless said otherwise. `line` is what its check says while it is well."""

    service: str
    encode: Encode
    line: Callable[[Endpoint], str]


class ConsulRegistrar:
    """Implements Registrar over an agent. `run` and `leave` may overlap; all calls belong to one event loop.

    Counters for metrics: `writes` (each a Raft write), `marks` (TTL passes and fails), `failures` (calls that failed).
    """

    def __init__(
        self,
        agent: AgentApi,
        *,
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
        timing: RegistrarTiming | None = None,
        form: Form | None = None,
    ) -> None:
        self._form = form or MODEL_SERVER
        timing = timing or RegistrarTiming()
        self._agent = agent
        self._clock = clock
        self._timing = timing
        self._check = TtlCheck(timing.ttl_s, timing.deregister_after_s)
        self._backoff = Backoff(rng, timing.retry_first_s, timing.retry_most_s)
        self._leave_backoff = Backoff(rng, timing.retry_first_s, timing.retry_most_s)
        self._endpoint: Endpoint | None = None
        self._record: ServiceRecord | None = None
        self._written: Written | None = None
        self._ever_written = False
        self._passing, self._note = True, ""
        self._marked: tuple[bool, str] | None = None
        self._marked_at_s = 0.0
        self._leaving = False
        self._leaving_because: str | None = None
        self._failing = False
        self._wake = asyncio.Event()
        self._calls = asyncio.Lock()
        self.writes = self.marks = self.failures = 0

    def announce(self, endpoint: Endpoint) -> None:
        """See Registrar."""
        if self._endpoint is not None and self._endpoint.server != endpoint.server:
            raise ValueError(f"this registrar keeps {self._endpoint.server}, not {endpoint.server}")
        self._record = self._form.encode(endpoint, leaving=self._leaving_because)
        self._endpoint = endpoint
        self._wake.set()

    def set_health(self, *, passing: bool, note: str) -> None:
        """See Registrar."""
        self._passing, self._note = passing, escape(note)[:_MAX_NOTE]
        self._wake.set()

    async def run(self) -> None:
        """See Registrar."""
        while True:
            self._wake.clear()
            try:
                async with self._calls:
                    next_s = await self._bring_up_to_date()
            except CatalogError as error:
                self._failed(error)
                # Not cut short by news: it is the agent that is to be spared.
                await asyncio.sleep(self._backoff.delay_s())
                continue
            self._succeeded()
            try:
                async with asyncio.timeout(None if next_s is None else max(0.0, next_s - self._clock())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def leaving(self, reason: str) -> None:
        """See Registrar."""
        self._leaving_because = reason or "asked to"
        if self._endpoint is not None:
            self.announce(self._endpoint)

    async def leave(self, reason: str) -> None:
        """See Registrar."""
        self._leaving = True
        self._leaving_because = reason or "asked to"
        try:
            async with asyncio.timeout(self._timing.leave_within_s), self._calls:
                await self._leave(reason)
        except TimeoutError:
            log.error(
                "left without the catalog taking it within %g s; routers will see the check turn critical",
                self._timing.leave_within_s,
                extra={"server": self._endpoint.server if self._endpoint else ""},
            )

    async def _bring_up_to_date(self) -> float | None:
        """Do what is due; returns when the next thing is, None if not before news."""
        if self._leaving or self._endpoint is None or self._record is None:
            return None
        # A write renews the TTL, so an unhealthy server that went on writing would look alive: it only fails its check.
        if self._passing:
            await self._write_if_due(self._record)
        await self._mark_if_due(self._record.service_id)
        next_mark_s = self._marked_at_s + self._timing.pass_every_s
        due_s = write_due_s(self._written, self._record, self._timing.load_every_s) if self._passing else None
        return next_mark_s if due_s is None else min(next_mark_s, due_s)

    async def _write_if_due(self, record: ServiceRecord) -> None:
        due_s = write_due_s(self._written, record, self._timing.load_every_s)
        if due_s is None or due_s > self._clock():
            return
        first = self._written is None
        # Only the first write replaces checks (a life before may have left others): it would end maintenance mode.
        replace = not self._ever_written and not await self._agent.in_maintenance(record.service_id)
        await self._agent.register(self._form.service, record, self._check, replace_checks=replace)
        self.writes += 1
        self._written, self._ever_written = Written(record, self._clock()), True
        if first:
            # A check that a life before left keeps its status: the mark that comes next passes it.
            log.info("registered", extra={"server": record.service_id, "epoch": record.meta["epoch"]})

    async def _mark_if_due(self, service_id: str) -> None:
        output = self._output()
        wanted = (self._passing, "" if self._passing else output)
        if wanted == self._marked and self._clock() < self._marked_at_s + self._timing.pass_every_s:
            return
        marked_at_s = self._clock()
        try:
            await self._agent.mark(service_id, passing=wanted[0], output=output)
        except CatalogError as error:
            # 1.8 answers an unknown check with 500, later ones with 404: ask whether the record is still there.
            if not error.status or await self._agent.epoch(service_id) is not None:
                raise
            if self._written is not None:
                log.warning("the agent has lost this server's record", extra={"server": service_id})
            self._written = self._marked = None
            if wanted[0]:
                raise
            # Unhealthy, and nothing is there that could say otherwise: registered again once it is well.
        self.marks += 1
        if self._written is not None or not wanted[0]:
            self._marked, self._marked_at_s = wanted, marked_at_s

    async def _leave(self, reason: str) -> None:
        if self._endpoint is None or not self._ever_written:
            return
        record = self._form.encode(self._endpoint, leaving=self._leaving_because)
        while True:
            try:
                if await self._superseded(record):
                    return
                await self._agent.register(self._form.service, record, self._check, replace_checks=False)
                self.writes += 1
                if not self._passing:
                    # `run` may not have got to it: what failed is to be seen as failed while it leaves.
                    await self._agent.mark(record.service_id, passing=False, output=self._output())
                    self.marks += 1
                await asyncio.sleep(self._timing.settle_s)
                if not await self._superseded(record):
                    await self._agent.deregister(record.service_id)
                    log.info("deregistered", extra={"server": record.service_id, "because": escape(reason)[:_MAX_NOTE]})
                return
            except CatalogError as error:
                self._failed(error)
                await asyncio.sleep(self._leave_backoff.delay_s())

    async def _superseded(self, record: ServiceRecord) -> bool:
        """Whether a later life of this server has registered already: then the record is no longer ours to remove."""
        epoch = await self._agent.epoch(record.service_id)
        if epoch in (None, record.meta["epoch"]):
            return False
        log.info("a later life has the record; left alone", extra={"server": record.service_id, "epoch": epoch})
        return True

    def _output(self) -> str:
        if not self._passing or self._endpoint is None:
            return self._note or "does not answer"
        line = self._form.line(self._endpoint)
        return f"{line}; {self._note}" if self._note else line

    def _failed(self, error: CatalogError) -> None:
        self.failures += 1
        if not self._failing:
            log.warning("cannot reach the catalog, trying on: %s", error, extra={"reason": error.reason})
        self._failing = True

    def _succeeded(self) -> None:
        if self._failing:
            log.info("the catalog answers again")
        self._failing = False
        self._backoff.reset()


def load_line(load: Load) -> str:
    """The load as it is, in a line for whoever looks at the agent."""
    return (
        f"gpu {load.utilization:.0%}, {load.running} running, {load.waiting} waiting, kv {load.kv_usage:.0%}, "
        f"memory {load.memory_usage:.0%}"
    )


MODEL_SERVER = Form(SERVICE, encode, lambda endpoint: load_line(endpoint.load))
