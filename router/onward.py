"""Where a stream that broke goes on: which servers could take it over, and which one does."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from router import resume
from router.errors import EndpointError
from router.fleet import Fleet
from router.flight import Flight
from router.learned import Learned
from router.ledger import NOTHING, Key
from router.picks import Picks
from router.policy import Chosen
from router.request import Request
from router.resume import ResumeRules
from router.running import Attempt
from router.snapshot import NOBODY, Holder
from stoker.v1 import generation_pb2
from stoker_common.clock import Clock
from stoker_common.resuming import Mode
from stoker_common.transcript import Transcript


class Onward:
    """`hold_s`: how long a stream waits for a server to go on with."""

    def __init__(
        self, picks: Picks, fleet: Fleet, learned: Learned, clock: Clock, hold_s: float, rules: ResumeRules
    ) -> None:
        self._picks = picks
        self._fleet = fleet
        self._learned = learned
        self._clock = clock
        self._hold_s = hold_s
        self._rules = rules

    async def choose(
        self,
        request: Request,
        generation: generation_pb2.Generation,
        flight: Flight,
        tried: set[Key],
        willing_later: set[Key],
        failure: EndpointError | None,
        deadline_s: float | None,
    ) -> tuple[Request, Chosen, generation_pb2.Generation]:
        """The server to go on with a stream that broke, and what to ask it, as the policies see it and as it is sent.
        Waits a while for one. Raises Refusal."""
        if not resume.wanted(generation):
            raise self._picks.nothing_left(request, failure)
        transcript = flight.transcript
        rest = replace(
            request,
            model=transcript.model,
            prompt_tokens=len(transcript.prompt_token_ids) + transcript.tokens,
            resumed_tokens=transcript.tokens,
            expected_output_tokens=max(1, request.expected_output_tokens - transcript.tokens),
        )
        give_up_s = self._clock() + self._hold_s
        if deadline_s is not None:
            give_up_s = min(give_up_s, deadline_s)
        while True:
            holders = self._fleet.snapshot.holders.get(transcript.model, NOBODY).by_key
            modes = self._modes(holders, generation, transcript)
            chosen = self._picks.choose(rest, (holders.keys() - modes.keys()).union(tried), crowd=True)
            if chosen is not None:
                key = chosen.candidate.holder.member.key
                servers = [server for server, _ in tried]
                return rest, chosen, resume.continued(generation, transcript, modes[key], servers)
            if holders and not modes:
                why = "no server has a mode of resuming that keeps what it asked for"
                raise resume.impossible(why if failure is None else f"{why}; {failure}")
            if self._clock() >= give_up_s:
                raise self._picks.nothing_left(request, failure)
            # Rather one that was busy, or that the client would avoid, than none.
            tried -= willing_later if failure is not None else set(tried)
            # A server that restarts, a link that comes back: either shows as a change, a breaker's end does not.
            await self._fleet.changed(within_s=0.2)

    def movable(self, key: Key, attempt: Attempt) -> bool:
        """Whether what runs on `key` could go on elsewhere now."""
        holders = self._fleet.snapshot.holders.get(attempt.generation.model, NOBODY).by_key
        others = {other: holder for other, holder in holders.items() if other != key}
        if not attempt.transcript.started:
            return bool(others)
        wanted = resume.wanted(attempt.generation)
        return wanted and bool(self._modes(others, attempt.generation, attempt.transcript))

    def avoided(self, servers: Collection[str]) -> set[Key]:
        """The members that a client asks to avoid."""
        return {key for key in self._fleet.snapshot.members if key[0] in servers}

    def _modes(
        self, holders: Mapping[Key, Holder], generation: generation_pb2.Generation, transcript: Transcript
    ) -> dict[Key, Mode]:
        """How the holders that can would go on with the stream."""
        accounts, rules = self._learned.ledger.accounts, self._rules
        modes: dict[Key, Mode] = {}
        for key, holder in holders.items():
            itl_ms = accounts.get(key, NOTHING).load.itl_ms
            mode = resume.mode_on(holder.member.endpoint, generation, transcript, itl_ms, rules)
            if mode is not None:
                modes[key] = mode
        return modes
