"""Which server a request goes to now: the policy, asked with all that the router knows at this moment."""

import random
from collections.abc import Collection

from router.adapters import settle_model
from router.attempt import Metadata
from router.bids import bid
from router.dispatch import expect
from router.errors import EndpointError
from router.first_tokens import Expectation
from router.fleet import Fleet
from router.hot import choose_hot
from router.learned import Learned
from router.ledger import NOTHING, Key
from router.policies import RoutingPolicy
from router.policy import Candidate, Choices, Chosen, Conditions
from router.readying import Readying
from router.request import Request
from router.room import Rooms
from router.snapshot import NOBODY
from stoker.v1 import generation_pb2
from stoker_common import prefix
from stoker_common.bid import METADATA_KEY
from stoker_common.clock import Clock
from stoker_common.refusal import Refusal, unavailable


class Picks:
    """`retry_after_s` is what callers are told to wait where there is no server."""

    def __init__(
        self,
        fleet: Fleet,
        policy: RoutingPolicy,
        learned: Learned,
        rooms: Rooms,
        readying: Readying,
        clock: Clock,
        rng: random.Random,
        retry_after_s: float,
    ) -> None:
        self._fleet = fleet
        self._policy = policy
        self._learned = learned
        self._rooms = rooms
        self._readying = readying
        self._clock = clock
        self._rng = rng
        self._retry_after_s = retry_after_s

    def describe(self, generation: generation_pb2.Generation) -> Request:
        """The request as the policies see it; names an adapter as its model, in place. Raises Refusal: NOT_FOUND for a
        model that no server lists."""
        snapshot = self._fleet.snapshot
        if not snapshot.known:
            raise unavailable(
                "this router has not read the catalog yet; if that lasts, look at its log for what Consul answers",
                reason="CATALOG_UNREAD",
                retry_after_s=self._retry_after_s,
            )
        settle_model(generation, snapshot)
        sampling = generation.sampling
        return Request(
            request_id=generation.request_id,
            model=generation.model,
            prompt_tokens=self._learned.sizing.prompt_tokens(generation),
            expected_output_tokens=self._learned.sizing.output_tokens(generation),
            session=prefix.session_hash(generation.model, generation.cache_salt, generation.session.id),
            hard=generation.session.mode == generation_pb2.SESSION_MODE_HARD,
            prefix=prefix.of(generation, generation.model),
            # Logprobs of the prompt are computed with it.
            reads_cache=not sampling.skip_reading_prefix_cache and not sampling.HasField("prompt_logprobs"),
        )

    def choices(self, request: Request) -> Choices:
        """Every server's cost for the request, or why it is none to choose."""
        holders = self._fleet.snapshot.holders.get(request.model, NOBODY).by_key.values()
        return self._policy.costs.weigh(request, holders, (), self._conditions(request, self._rooms))

    def expect(self, request: Request, candidate: Candidate) -> Expectation:
        """When the request's first token would come from that server."""
        return expect(self._learned, request, candidate, self._clock())

    def choose(self, request: Request, tried: Collection[Key] = (), *, crowd: bool = False) -> Chosen | None:
        """The server for the request; None if none is left that can take it now.

        `crowd`: also where there is no room. Streams that were accepted once do not wait for it.
        """
        conditions = self._conditions(request, None if crowd else self._rooms)
        return self._policy.choose(request, self._fleet.snapshot, tried, conditions, self._rng)

    def choose_hot(self, request: Request, tried: Collection[Key] = ()) -> Chosen | None:
        """The server for the request, of those where its model is hot; None if none can take it now.

        Where another one would be ready before those have room, that one begins to ready it.
        """
        conditions, failed = self._conditions(request, self._rooms), self._readying.failed(request.model)
        snapshot = self._fleet.snapshot
        chosen, nearest = choose_hot(self._policy, request, snapshot, tried, failed, conditions, self._rng)
        if nearest is not None:
            self._readying.want(request.model, nearest)
        return chosen

    def bid(self, request: Request, chosen: Chosen, lost: int) -> Metadata:
        """What to tell the server of what is believed to wait there; `lost`: how often the request was outbid."""
        ledger = self._learned.ledger
        account = ledger.accounts.get(chosen.candidate.holder.member.key, NOTHING)
        return ((METADATA_KEY, bid(request, chosen, account, ledger.typical, lost).SerializeToString()),)

    def nothing_left(self, request: Request, failure: EndpointError | None) -> Refusal:
        """Why the request cannot be served, from its last failure or from what every holder is excluded by."""
        if failure is not None:
            refusal = failure.refusal
            if refusal.retry_after_s is None:
                refusal.retry_after_s = self._retry_after_s
            return refusal
        members = self._fleet.snapshot.members.values()
        why = "; ".join(
            f"{member.endpoint.server} is {member.absent}" for member in members if member.endpoint.model(request.model)
        )
        return unavailable(
            f"no server can take the model {request.model!r} now: {why}; `stoker status` shows them",
            reason="NO_ENDPOINT",
            retry_after_s=self._retry_after_s,
        )

    def _conditions(self, request: Request, rooms: Rooms | None) -> Conditions:
        learned = self._learned
        session = learned.caches.session(request)
        return Conditions(
            accounts=learned.ledger.accounts,
            breakers=learned.breakers,
            held=learned.caches.held(request, session),
            ways_ms=learned.ways.ms,
            now_s=self._clock(),
            rooms=rooms,
            typical=learned.ledger.typical,
            session=session,
        )
