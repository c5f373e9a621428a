"""What a catalog offers: a registrar for servers, a watcher for routers, and the view that watchers publish."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Protocol

from discovery.endpoint import Endpoint


class CatalogState(Enum):
    """What the catalog says of a server."""

    PASSING = "passing"
    CRITICAL = "critical"
    # It was there, is no longer, and did not say that it left: an agent may have forgotten it.
    MISSING = "missing"
    MAINTENANCE = "maintenance"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A server's record and what the catalog says of it."""

    endpoint: Endpoint
    state: CatalogState


@dataclass(frozen=True, slots=True)
class ZoneView:
    """The last known good view of one zone: entries by server id.

    `confirmed_at_s` is the clock's reading at the last answer that could be believed, None before the first; `error`
    says why the catalog cannot be read at the moment and is empty if it can.
    """

    zone: str
    entries: Mapping[str, CatalogEntry] = field(default_factory=lambda: MappingProxyType({}))
    confirmed_at_s: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class CatalogView:
    """All zones' views, by name."""

    zones: Mapping[str, ZoneView] = field(default_factory=lambda: MappingProxyType({}))


class Watcher(Protocol):
    """Follows the catalog of every zone and fails static: what cannot be believed changes nothing."""

    async def run(self, publish: Callable[[CatalogView], None]) -> None:
        """Publish each new view, the first as soon as there is one, until cancelled. Never raises for an outage.

        Every answer that can be believed publishes, changed or not, so that `confirmed_at_s` moves on.
        """

    def forget(self, zone: str, lives: Collection[tuple[str, str]]) -> None:
        """Drop the MISSING entries among these servers' epochs: for the router to call when its data paths to them are
        dead too.

        Anything else (another state, another epoch, unknown) stays as it is. One call publishes one view.
        """


class Registrar(Protocol):
    """Keeps one server's record in the catalog, through any outage, until it leaves."""

    def announce(self, endpoint: Endpoint) -> None:
        """Make `endpoint` the record to keep. A changed model or address is written at once, load in coarse steps.

        Cheap: call it every second or so; the check's output shows its load as it is. Raises EncodeError, and keeps the
        record before, if the catalog has no room or no form for it; ValueError if it is another server's.
        """

    def set_health(self, *, passing: bool, note: str) -> None:
        """Say whether the server answers, and why (a line for operators)."""

    async def run(self) -> None:
        """Bring the catalog to what was announced and keep it there, until cancelled. Never raises for an outage."""

    def leaving(self, reason: str) -> None:
        """Mark the record as leaving, at once and for good: it stays, out of the picks, while what runs is finished."""

    async def leave(self, reason: str) -> None:
        """Say that the server leaves, let watchers see it, then deregister. Gives up after a bounded time, silently to
        callers and loudly to the log: a server must be able to exit while the catalog is away."""
