"""What a router says of what it sees: status, models, and the price of a request on every server."""

from dataclasses import dataclass, replace

from google.protobuf.timestamp_pb2 import Timestamp

from discovery.catalog import CatalogState, ZoneView
from discovery.messages import endpoint_to_proto, model_to_proto, seconds
from router import filters
from router.ejection import BreakerState
from router.fleet import Fleet
from router.learned import Learned
from router.ledger import NOTHING
from router.messages import calibration, cost, first_token
from router.picks import Picks
from router.snapshot import Member
from stoker.v1 import generation_pb2, model_pb2, router_pb2

_CATALOG_STATE = {
    CatalogState.PASSING: router_pb2.CATALOG_STATE_PASSING,
    CatalogState.CRITICAL: router_pb2.CATALOG_STATE_CRITICAL,
    CatalogState.MISSING: router_pb2.CATALOG_STATE_MISSING,
    CatalogState.MAINTENANCE: router_pb2.CATALOG_STATE_MAINTENANCE,
    CatalogState.LEAVING: router_pb2.CATALOG_STATE_LEAVING,
}
_BREAKER = {
    BreakerState.ALIVE: router_pb2.BREAKER_ALIVE,
    BreakerState.EJECTED: router_pb2.BREAKER_EJECTED,
    BreakerState.PROBING: router_pb2.BREAKER_PROBING,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a router is. `started_at_s`: seconds since 1970."""

    router: str
    zone: str
    version: str
    started_at_s: float


class Report:
    """Answers operators' questions from the router's own state; asks nobody."""

    def __init__(self, identity: Identity, picks: Picks, fleet: Fleet, learned: Learned) -> None:
        self._identity = identity
        self._picks = picks
        self._fleet = fleet
        self._learned = learned

    def status(self, zone: str, now_s: float) -> router_pb2.StatusResponse:
        """What the router sees, of one zone or of all (empty)."""
        started_at = Timestamp()
        started_at.FromNanoseconds(int(self._identity.started_at_s * 1e9))
        home = self._identity.zone
        zones = sorted(self._fleet.view.zones.values(), key=lambda view: (view.zone != home, view.zone))
        return router_pb2.StatusResponse(
            router=self._identity.router,
            zone=home,
            version=self._identity.version,
            started_at=started_at,
            zones=[self._zone(view, now_s) for view in zones if zone in ("", view.zone)],
            in_flight=self._learned.ledger.in_flight,
        )

    def models(self, zone: str, model: str) -> model_pb2.ListModelsResponse:
        """Every model on every server that can serve it, by zone, server and name."""
        found = [
            model_pb2.ModelOnServer(
                server=member.endpoint.server, zone=member.endpoint.zone, model=model_to_proto(state)
            )
            for member in self._fleet.snapshot.members.values()
            if not member.absent and zone in ("", member.endpoint.zone)
            for state in member.endpoint.models
            if model in ("", state.name)
        ]
        found.sort(key=lambda each: (each.zone, each.server, each.model.name))
        return model_pb2.ListModelsResponse(models=found)

    def explain(self, generation: generation_pb2.Generation) -> router_pb2.ExplainResponse:
        """What the request would cost on every server that lists its model. Raises Refusal for an unknown model."""
        request = self._picks.describe(generation)
        choices = self._picks.choices(request)
        chosen = self._picks.choose(request)
        candidates = [
            router_pb2.Candidate(
                server=candidate.holder.member.endpoint.server,
                zone=candidate.holder.member.endpoint.zone,
                cost=cost(candidate.cost),
                cached_tokens=candidate.cost.cached_tokens,
                first_token=first_token(self._picks.expect(request, candidate)),
            )
            for candidate in choices.candidates
        ]
        candidates += [
            router_pb2.Candidate(
                server=member.endpoint.server,
                zone=member.endpoint.zone,
                excluded_by=choices.excluded.get(member.key) or member.absent,
            )
            for member in self._fleet.snapshot.members.values()
            if member.endpoint.model(request.model) and (member.absent or member.key in choices.excluded)
        ]
        return router_pb2.ExplainResponse(
            candidates=candidates,
            chosen=chosen.candidate.holder.member.endpoint.server if chosen else "",
            prompt_tokens=request.prompt_tokens,
            expected_output_tokens=request.expected_output_tokens,
        )

    def _zone(self, view: ZoneView, now_s: float) -> router_pb2.ZoneStatus:
        members = [member for member in self._fleet.snapshot.members.values() if member.endpoint.zone == view.zone]
        members.sort(key=lambda member: member.endpoint.server)
        return router_pb2.ZoneStatus(
            zone=view.zone,
            catalog_age=None if view.confirmed_at_s is None else seconds(max(0.0, now_s - view.confirmed_at_s)),
            catalog_error=view.error,
            endpoints=[self._endpoint(member) for member in members],
            load_share=self._learned.breakers.zone_share(view.zone),
        )

    def _endpoint(self, member: Member) -> router_pb2.EndpointStatus:
        breakers = self._learned.breakers
        account = self._learned.ledger.accounts.get(member.key, NOTHING)
        state = breakers.state(member.key)
        ejected_for_s = breakers.ejected_for_s(member.key)
        return router_pb2.EndpointStatus(
            endpoint=endpoint_to_proto(replace(member.endpoint, load=account.load)),
            catalog_state=_CATALOG_STATE[member.catalog_state],
            breaker=_BREAKER[state],
            ejected_for=seconds(ejected_for_s) if state is BreakerState.EJECTED else None,
            in_flight=account.own_streams,
            booked_prompt_tokens=account.own_prompt_tokens,
            excluded_by=member.absent or filters.ejected(member.key, breakers),
            breaker_cause=breakers.cause(member.key),
            share=breakers.share(member.key),
            calibration=[
                calibration(each, self._learned.first_tokens.line(member.key, each.model))
                for each in self._learned.calibration.figures(member.key)
            ],
        )
