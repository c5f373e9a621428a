"""One immutable view of all endpoints: what the catalog says of each and whether its data path answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from discovery.catalog import CatalogState, CatalogView
from discovery.endpoint import Endpoint, ModelState, Residency
from router.ledger import Key
from router.rendezvous import point


@dataclass(frozen=True, slots=True)
class Member:
    """An endpoint as the policies see it. `answers` is False once its data path was tried and found dead."""

    key: Key
    endpoint: Endpoint
    catalog_state: CatalogState
    answers: bool = True

    @property
    def absent(self) -> str:
        """Why the endpoint can serve nobody, by catalog and data path together; empty if it can.

        What a server or an operator said counts at once. What the catalog merely lost, or calls critical, counts only
        when the data path agrees: agents forget, and gossip is slow.
        """
        if self.catalog_state in (CatalogState.LEAVING, CatalogState.MAINTENANCE):
            return str(self.catalog_state.value)
        if self.catalog_state is not CatalogState.PASSING and not self.answers:
            return f"{self.catalog_state.value} and not answering"
        return ""


@dataclass(frozen=True, slots=True)
class Holder:
    """A member that can serve one model, and the model's state there."""

    member: Member
    model: ModelState

    @property
    def needs_room(self) -> bool:
        """Whether others may have to make room before the model is hot there; an adapter has its base's."""
        if self.model.residency is Residency.HOT:
            return False
        base = self.member.endpoint.model(self.model.base) if self.model.base else None
        return base is None or base.residency is not Residency.HOT


@dataclass(frozen=True, slots=True)
class Holders:
    """All members that can serve one model: by server and epoch, and the same by zone, in the order of their points;
    and these points."""

    by_key: Mapping[Key, Holder] = field(default_factory=lambda: MappingProxyType({}))
    by_zone: Mapping[str, tuple[Holder, ...]] = field(default_factory=lambda: MappingProxyType({}))
    points: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))


NOBODY = Holders()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All members by server and epoch, and for each model the members that can serve it."""

    members: Mapping[Key, Member] = field(default_factory=lambda: MappingProxyType({}))
    holders: Mapping[str, Holders] = field(default_factory=lambda: MappingProxyType({}))
    # Every model that any member lists, also where it cannot be served now: tells "unknown" from "not now".
    models: frozenset[str] = frozenset()
    # Of those that are LoRA adapters, the model that each belongs to.
    bases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    # Whether any zone's catalog was ever read: tells "no such model" from "nothing known yet".
    known: bool = False


def build(
    view: CatalogView,
    dead: frozenset[Key],
    leaving: frozenset[Key] = frozenset(),
    hot: Mapping[Key, frozenset[str]] = MappingProxyType({}),
) -> Snapshot:
    """The snapshot of a catalog's view, given the keys whose data path is dead and those that said goodbye over it, and
    the models that servers said are hot before the catalog did."""
    members: dict[Key, Member] = {}
    holders: dict[str, list[Holder]] = {}
    bases: dict[str, str] = {}
    for zone in view.zones.values():
        for entry in zone.entries.values():
            key = (entry.endpoint.server, entry.endpoint.epoch)
            state = CatalogState.LEAVING if key in leaving else entry.state
            member = Member(key, _heated(entry.endpoint, hot.get(key)), state, key not in dead)
            members[key] = member
            for model in member.endpoint.models:
                serving = holders.setdefault(model.name, [])
                if model.base:
                    bases[model.name] = model.base
                if not member.absent:
                    serving.append(Holder(member, model))
    return Snapshot(
        members=MappingProxyType(members),
        holders=MappingProxyType({name: _holders(serving) for name, serving in holders.items()}),
        models=frozenset(holders),
        bases=MappingProxyType(bases),
        known=any(zone.confirmed_at_s is not None for zone in view.zones.values()),
    )


def _heated(endpoint: Endpoint, hot: frozenset[str] | None) -> Endpoint:
    if not hot:
        return endpoint
    models = (
        replace(m, residency=Residency.HOT, time_to_ready_ms=0.0) if m.name in hot else m for m in endpoint.models
    )
    return replace(endpoint, models=tuple(models))


def _holders(serving: list[Holder]) -> Holders:
    by_zone: dict[str, list[Holder]] = {}
    for holder in serving:
        by_zone.setdefault(holder.member.endpoint.zone, []).append(holder)
    rings = {zone: tuple(sorted(there, key=_point)) for zone, there in by_zone.items()}
    return Holders(
        MappingProxyType({holder.member.key: holder for holder in serving}),
        MappingProxyType(rings),
        MappingProxyType({zone: tuple(map(_point, ring)) for zone, ring in rings.items()}),
    )


def _point(holder: Holder) -> int:
    return point(holder.member.endpoint.server)
