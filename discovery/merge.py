"""How an answer changes a zone's view, failing static: what cannot be believed adds, and never takes away. Pure.

| the answer | says of a server | what the view makes of it |
| --- | --- | --- |
| believable | a good record | that record and state; a new epoch replaces the old one |
| believable | a record that cannot be decoded | the last good record with the new state; nothing if there is none |
| believable | nothing | MISSING with the last record; dropped if it was LEAVING |
| not believable | a good record of a server not known | that record and state: better than nothing |
| not believable | anything else | nothing |
| an error | | nothing |
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

from discovery.catalog import CatalogEntry, CatalogState, ZoneView
from discovery.consul_answer import Reported


def merge(
    view: ZoneView, reports: Mapping[str, Reported], disbelieved: str, now_s: float, max_missing: int
) -> ZoneView:
    """The view after an answer; `disbelieved` says why the answer must not take anything away, empty if it may.

    At most `max_missing` entries stay MISSING, those that went missing last.
    """
    if disbelieved:
        added = {server: entry for server, entry in _entries(reports).items() if server not in view.entries}
        return replace(view, entries=_frozen({**view.entries, **added}), error=disbelieved)
    here: dict[str, CatalogEntry] = _entries(reports)
    missing: dict[str, CatalogEntry] = {}
    for server, entry in view.entries.items():
        if server in here:
            continue
        if server in reports:
            here[server] = CatalogEntry(entry.endpoint, reports[server].state)
        elif entry.state is not CatalogState.LEAVING:
            missing[server] = CatalogEntry(entry.endpoint, CatalogState.MISSING)
    # In the order in which they went missing: those that were MISSING already first.
    ranked = sorted(missing, key=lambda server: view.entries[server].state is not CatalogState.MISSING)
    kept = {server: missing[server] for server in ranked[max(0, len(ranked) - max_missing) :]}
    return ZoneView(view.zone, _frozen({**kept, **here}), confirmed_at_s=now_s)


def fail(view: ZoneView, error: str) -> ZoneView:
    """The view after an answer that did not come: only `error` changes."""
    return replace(view, error=error)


def forget(view: ZoneView, lives: Collection[tuple[str, str]]) -> ZoneView:
    """The view without the MISSING entries among these servers' epochs; the same view if there are none."""
    named = frozenset(lives)
    kept = {
        server: entry
        for server, entry in view.entries.items()
        if entry.state is not CatalogState.MISSING or (server, entry.endpoint.epoch) not in named
    }
    return view if len(kept) == len(view.entries) else replace(view, entries=_frozen(kept))


def _entries(reports: Mapping[str, Reported]) -> dict[str, CatalogEntry]:
    return {
        server: CatalogEntry(report.endpoint, report.state)
        for server, report in reports.items()
        if report.endpoint is not None
    }


def _frozen(entries: dict[str, CatalogEntry]) -> Mapping[str, CatalogEntry]:
    return MappingProxyType(entries)
