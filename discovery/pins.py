"""Pins: models that are never put to sleep. They live in Consul's KV, `stoker/pins/MODEL`, whatever the value.

KV does not replicate between datacenters, so one zone's counts for all. What cannot be read changes nothing: the last
copy stays in force, and on disk for a start without Consul.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from discovery.errors import CatalogError
from discovery.index_rules import next_index
from stoker_common.backoff import Backoff

log = logging.getLogger(__name__)

PREFIX = "stoker/pins/"
# As for the catalog: how soon a hang shows. A change wakes the query at once.
_WAIT_S = 10.0
_GAP_S = 0.1

OnPins = Callable[[frozenset[str]], None]


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys under a prefix, and the index to wait on for the next change."""

    index: int
    keys: Sequence[str]
    known_leader: bool


class KeysApi(Protocol):
    """What is needed of an agent."""

    async def keys(self, prefix: str, zone: str, index: int, wait_s: float) -> Keys:
        """The keys; with an index, once they have changed since or `wait_s` has passed. Raises CatalogError."""


class Pins(Protocol):
    """Who knows the pinned models."""

    async def run(self, publish: OnPins) -> None:
        """Tell the pinned models, at first and whenever they change, until cancelled."""


class NoPins:
    """Implements Pins where nobody can pin."""

    async def run(self, publish: OnPins) -> None:
        """See Pins."""
        await asyncio.Event().wait()


class ConsulPins:
    """Implements Pins over an agent. `zone`: whose KV counts; `kept`: the file that holds the last copy, if any."""

    def __init__(self, agent: KeysApi, zone: str, backoff: Backoff, kept: Path | None = None) -> None:
        self._agent = agent
        self._zone = zone
        self._backoff = backoff
        self._kept = kept
        self._pins: frozenset[str] | None = None
        self._failing = False

    async def run(self, publish: OnPins) -> None:
        """See Pins."""
        if self._kept is not None and (pins := await asyncio.to_thread(_read, self._kept)) is not None:
            self._pins = pins
            publish(pins)
        index = 0
        while True:
            try:
                found = await self._agent.keys(PREFIX, self._zone, index, _WAIT_S)
                if not found.known_leader:
                    raise CatalogError("NO_LEADER", f"nobody leads Consul in {self._zone}")
            except CatalogError as error:
                if not self._failing:
                    log.warning("pins cannot be read; keeping the last copy: %s", error, extra={"zone": self._zone})
                self._failing, index = True, 0
                await asyncio.sleep(self._backoff.delay_s())
                continue
            self._failing = False
            self._backoff.reset()
            index = next_index(index, found.index)
            names = (unquote(key.removeprefix(PREFIX)) for key in found.keys)
            await self._take(frozenset(name for name in names if name), publish)
            await asyncio.sleep(_GAP_S)

    async def _take(self, pins: frozenset[str], publish: OnPins) -> None:
        if pins == self._pins:
            return
        self._pins = pins
        log.info("pins", extra={"models": sorted(pins)[:50]})
        publish(pins)
        if self._kept is not None:
            try:
                await asyncio.to_thread(_write, self._kept, pins)
            except OSError as error:
                log.warning("the last copy of the pins cannot be kept: %s", error)


def _read(file: Path) -> frozenset[str] | None:
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("the last copy of the pins cannot be read: %s", error)
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        log.warning("the last copy of the pins is no list of names")
        return None
    return frozenset(found)


def _write(file: Path, pins: frozenset[str]) -> None:
    """Beside it and renamed: whoever reads finds a whole file."""
    beside = file.with_name(f"{file.name}.new")
    beside.write_text(json.dumps(sorted(pins)))
    beside.replace(file)
