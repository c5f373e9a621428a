"""Takes out the server whose streams crawl, and moves them elsewhere no faster than the others can take them in.

Looks at counts that the relay keeps anyway, twice a second. Nothing is done per token.
"""

import logging
from collections.abc import Callable, Iterable

from router.ejection import Breakers
from router.errors import EndpointError, Fault
from router.fleet import Fleet
from router.ledger import NOTHING, Key, Ledger
from router.pace import Paces
from router.running import Attempt, Running
from router.scorers import Rates
from router.snapshot import NOBODY, Holder
from stoker_common.clock import Clock
from stoker_common.refusal import unavailable
from stoker_common.ticks import tick

log = logging.getLogger(__name__)

EVERY_S = 0.5
# Past this the engine preempts streams: they wait, and that is no slowness.
_FULL_KV = 0.95
# So long may prompts take that are being computed beside the streams: a look.
_PROMPTS_S = EVERY_S
# Moved streams may fill so much of a target's time with prompts, so that its own streams go on.
_PACED_S = EVERY_S / 2


class Crawl:
    """Judges servers by their streams' pace, as this router sees it."""

    def __init__(
        self,
        fleet: Fleet,
        running: Running,
        ledger: Ledger,
        breakers: Breakers,
        movable: Callable[[Key, Attempt], bool],
        clock: Clock,
    ) -> None:
        self._fleet = fleet
        self._running = running
        self._ledger = ledger
        self._breakers = breakers
        self._movable = movable
        self._clock = clock
        self._paces: Paces[Key] = Paces()
        self._seen: dict[Attempt, int] = {}
        self._looked_at_s = clock()

    async def run(self) -> None:
        """Look after servers until cancelled."""
        while True:
            await tick(EVERY_S)
            self.look()

    def look(self) -> None:
        """Judge, and move what is due now."""
        now_s = self._clock()
        span_s, self._looked_at_s = now_s - self._looked_at_s, now_s
        # Who slept longer than that does not know when what he finds came.
        slept = span_s > 2 * EVERY_S
        seen, self._seen = self._seen, {}
        self._paces.keep(self._fleet.snapshot.members.keys())
        for key in self._running.keys():
            streams, tokens = self._count(key, seen)
            if slept or self._unfair(key):
                self._paces.unfair(key)
            elif streams and span_s > 0.0:
                load = self._ledger.accounts.get(key, NOTHING).load
                self._paces.observe(key, now_s, span_s, streams, tokens, load.running, load.itl_ms / 1e3)
        for key in self._paces.judge(now_s):
            if self._running.on(key) and self._breakers.crawls(key):
                self._move(key, now_s)

    def _count(self, key: Key, seen: dict[Attempt, int]) -> tuple[int, int]:
        """The streams that ran since the last look, and the tokens that came on them. Several outputs end one by one,
        so that their pace says little: such streams are left out."""
        streams = tokens = 0
        for attempt in self._running.attempts(key):
            came = attempt.came
            if not came or attempt.generation.sampling.n > 1:
                continue
            self._seen[attempt] = came
            if attempt in seen:
                streams += 1
                tokens += came - seen[attempt]
        return streams, tokens

    def _unfair(self, key: Key) -> bool:
        member = self._fleet.snapshot.members.get(key)
        account = self._ledger.accounts.get(key, NOTHING)
        load = account.load
        if member is None:
            return True
        full = max(account.own_streams, load.running + load.waiting) >= member.endpoint.max_streams
        prompts = load.waiting_prompt_tokens > _PROMPTS_S * (load.prefill_tokens_per_second or _PREFILL_PER_S)
        return full or load.kv_usage >= _FULL_KV or prompts

    def _move(self, key: Key, now_s: float) -> None:
        moved = 0
        attempts = self._running.attempts(key)
        for model in sorted({attempt.generation.model for attempt in attempts}):
            holders = self._fleet.snapshot.holders.get(model, NOBODY).by_key
            others = [holder for other, holder in holders.items() if other != key and not self._breakers.refuses(other)]
            places, prompt_tokens = self._room(others, now_s)
            mine = [attempt for attempt in attempts if attempt.generation.model == model]
            # The cheapest to move have the most before them.
            for attempt in sorted(mine, key=_cost):
                if places < 1 or prompt_tokens <= 0.0:
                    break
                if self._movable(key, attempt):
                    attempt.interrupt.fire(_moved(key))
                    moved += 1
                    places -= 1
                    prompt_tokens -= _cost(attempt)
        if moved:
            log.warning("moving streams off a slow server", extra={"server": key[0], "streams": moved})

    def _room(self, holders: Iterable[Holder], now_s: float) -> tuple[int, float]:
        """Free places, and prompt tokens that may be computed until the next look beside what waits there already."""
        places = 0
        tokens = 0.0
        for holder in holders:
            account = self._ledger.accounts.get(holder.member.key, NOTHING)
            per_s = account.load.prefill_tokens_per_second or _PREFILL_PER_S
            free = int(holder.member.endpoint.max_streams - account.streams)
            allowed = _PACED_S * per_s - account.waiting_prompt_tokens(now_s, per_s)
            if free > 0 and allowed > 0.0:
                places += free
                tokens += allowed
        return places, tokens


# What is assumed where nothing was measured yet.
_PREFILL_PER_S = Rates().prefill_tokens_per_second


def _cost(attempt: Attempt) -> int:
    """Prompt tokens that another server computes to go on with it."""
    return max(1, len(attempt.transcript.prompt_token_ids) + attempt.transcript.tokens)


def _moved(key: Key) -> EndpointError:
    text = f"server {key[0]} is many times slower than it was"
    return EndpointError(Fault.MOVED, unavailable(text, reason="SERVER_SLOW"))
