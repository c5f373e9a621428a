"""The one writer of snapshots: joins what the catalog says with what the data path shows."""

import asyncio
from collections.abc import Callable, Collection, Mapping

from discovery.catalog import CatalogState, CatalogView
from discovery.endpoint import ModelState
from router.ledger import Key, Ledger
from router.snapshot import Snapshot, build


class Fleet:
    """Publishes a new snapshot whenever the catalog or the data path has changed. State changes here, synchronously."""

    def __init__(self, ledger: Ledger, on_members: Callable[[Collection[Key]], None]) -> None:
        """`on_members` is told the members' keys whenever one has come or gone."""
        self._ledger = ledger
        self._on_members = on_members
        self._view = CatalogView()
        self._dead: frozenset[Key] = frozenset()
        self._leaving: frozenset[Key] = frozenset()
        # Models that servers said are hot, with the catalog's word of then: it counts again once it changes.
        self._hot: dict[Key, tuple[frozenset[str], tuple[ModelState, ...]]] = {}
        self._snapshot = Snapshot()
        self._news = asyncio.Event()
        self._on_snapshot: Callable[[], None] = lambda: None

    def listen(self, on_snapshot: Callable[[], None]) -> None:
        """`on_snapshot` is told of each new snapshot."""
        self._on_snapshot = on_snapshot

    @property
    def snapshot(self) -> Snapshot:
        """The latest snapshot."""
        return self._snapshot

    @property
    def view(self) -> CatalogView:
        """The latest view of the catalog, for status and metrics."""
        return self._view

    def publish(self, view: CatalogView) -> None:
        """The catalog has changed."""
        before = self._snapshot.members
        unchanged = _entries(view) == _entries(self._view)
        self._view = view
        if unchanged and self._snapshot.known:
            return
        self._rebuild()
        for key, member in self._snapshot.members.items():
            known = before.get(key)
            # A record written for another reason repeats an old load; only a new figure is news.
            if known is None or known.endpoint.load != member.endpoint.load:
                self._ledger.published(key, member.endpoint.load)

    async def changed(self, within_s: float | None) -> None:
        """Wait until there is a new snapshot, or for so long; None: however long."""
        try:
            async with asyncio.timeout(within_s):
                await self._news.wait()
        except TimeoutError:
            return

    def data_path(self, answers: Mapping[Key, bool]) -> None:
        """The data paths to endpoints were tried: whether each answers."""
        dead = frozenset(key for key, alive in answers.items() if not alive) | (self._dead - answers.keys())
        if dead != self._dead:
            self._dead = dead
            self._rebuild()

    def leaving(self, key: Key, *, leaving: bool) -> None:
        """An endpoint said goodbye over its link, or is back on it."""
        said = self._leaving | {key} if leaving else self._leaving - {key}
        if said != self._leaving:
            self._leaving = said
            self._rebuild()

    def hot(self, key: Key, model: str) -> None:
        """An endpoint said that a model is hot there now; the catalog will say so a moment later."""
        said = self._catalog_models().get(key)
        if said is not None:
            known, since = self._hot.get(key, (frozenset[str](), said))
            self._hot[key] = (known | {model} if since == said else frozenset({model}), said)
            self._rebuild()

    def doubtful(self) -> list[Key]:
        """The endpoints that the catalog lost or calls critical: their data path decides."""
        doubtful = (CatalogState.CRITICAL, CatalogState.MISSING)
        return [key for key, member in self._snapshot.members.items() if member.catalog_state in doubtful]

    def _rebuild(self) -> None:
        before = self._snapshot.members.keys()
        if self._hot:
            said = self._catalog_models()
            self._hot = {key: each for key, each in self._hot.items() if said.get(key) == each[1]}
        hot = {key: models for key, (models, _) in self._hot.items()}
        self._snapshot = build(self._view, self._dead, self._leaving, hot)
        news, self._news = self._news, asyncio.Event()
        news.set()
        members = self._snapshot.members.keys()
        self._dead &= members
        self._leaving &= members
        if members != before:
            self._ledger.keep(members)
            self._on_members(members)
        self._on_snapshot()

    def _catalog_models(self) -> dict[Key, tuple[ModelState, ...]]:
        endpoints = (entry.endpoint for zone in self._view.zones.values() for entry in zone.entries.values())
        return {(endpoint.server, endpoint.epoch): endpoint.models for endpoint in endpoints}


def _entries(view: CatalogView) -> dict[str, object]:
    """What of a view a snapshot depends on: not how long ago it was confirmed."""
    return {name: (zone.entries, zone.confirmed_at_s is None) for name, zone in view.zones.items()}
