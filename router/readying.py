"""Readies models that requests wait for and that are nowhere hot: each on one server at a time, however many ask.

What a server refuses or fails at is asked of it again only after the time it named; meanwhile the next cheapest is.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter

from router.attempt import Transport
from router.ledger import Key
from router.policy import Candidate
from stoker.v1 import inference_pb2
from stoker_common.clock import Clock
from stoker_common.refusal import Refusal, unavailable

log = logging.getLogger(__name__)

# For refusals that name no time: a supervised server is back within seconds.
_AGAIN_S = 1.0
# A move that takes so many times longer than it did before hangs, perhaps: a disk that does not answer, a stream that
# does not end. The next server is asked; the slow one goes on, and is followed again if no other is there.
_PATIENCE, _LEAST_PATIENCE_S = 4.0, 60.0
# Nobody knows how long: fetching a large model for the first time takes minutes.
_UNKNOWN_PATIENCE_S = 900.0
_SLOW_AGAIN_S = 15.0
# Why a model is not ready that waiting does not change; other refusals are waited out.
_LASTING = frozenset({"MODEL_FAILED", "MODEL_NOT_FOUND", "NOT_YET", "NOT_IMPLEMENTED"})


class OnHot(Protocol):
    """Hears that a server has a model hot, before the catalog says so."""

    def __call__(self, key: Key, model: str) -> None:
        """It has."""


@dataclass(frozen=True, slots=True)
class _Failure:
    refusal: Refusal
    until_s: float

    @property
    def lasting(self) -> bool:
        return self.refusal.reason in _LASTING or (
            self.refusal.reason == "NO_ROOM" and self.refusal.retry_after_s is None
        )


class Readying:
    """What is on its way. Belongs to one event loop; moves run while `run` does."""

    def __init__(self, transport: Transport, registry: CollectorRegistry, clock: Clock, on_hot: OnHot) -> None:
        self._transport = transport
        self._clock = clock
        self._on_hot = on_hot
        self._on_news: Callable[[str], None] = lambda model: None
        self._under_way: dict[str, inference_pb2.Progress] = {}
        self._failures: dict[str, dict[Key, _Failure]] = {}
        self._wanted: asyncio.Queue[tuple[str, Candidate]] = asyncio.Queue()
        self._outcomes = Counter(
            "stoker_router_model_loads", "Models that this router had made hot because requests waited for them",
            ["model", "outcome"], registry=registry,
        )  # fmt: skip

    def listen(self, on_news: Callable[[str], None]) -> None:
        """`on_news` is told of a model of which there is something to tell to those who wait."""
        self._on_news = on_news

    def want(self, model: str, candidate: Candidate) -> None:
        """Have the candidate's server ready the model, unless some server does so already."""
        if model in self._under_way:
            return
        endpoint, expected_ms = candidate.holder.member.endpoint, candidate.holder.model.time_to_ready_ms
        progress = inference_pb2.Progress(server=endpoint.server, activity="asking the server")
        if expected_ms:
            progress.remaining.FromNanoseconds(round(expected_ms * 1e6))
        self._under_way[model] = progress
        self._wanted.put_nowait((model, candidate))

    def progress(self, model: str) -> inference_pb2.Progress | None:
        """How far a model is; None if nobody readies it."""
        return self._under_way.get(model)

    def failed(self, model: str) -> Collection[Key]:
        """The servers that could not ready the model a moment ago, and are not to be asked again yet."""
        return self._current(model).keys()

    def hopeless(self, model: str, holders: Collection[Key], until_s: float | None) -> Refusal | None:
        """Why waiting until then is of no use, when each of the holders, all cold, has refused or failed; else None."""
        failures = self._current(model)
        known = [failures[key] for key in holders if key in failures]
        if not known or len(known) < len(holders):
            return None
        soonest = min(known, key=lambda failure: (failure.lasting, failure.until_s))
        if not soonest.lasting and (until_s is None or soonest.until_s < until_s):
            return None
        why = soonest.refusal
        # Made anew: an exception carries the traceback of the one who raised it.
        retry_s = None if why.reason == "NO_ROOM" and soonest.lasting else soonest.until_s - self._clock()
        return Refusal(why.code, why.message, reason=why.reason, field=why.field, retry_after_s=retry_s)

    def changes_at_s(self, model: str) -> float | None:
        """When a server may be asked again."""
        return min((failure.until_s for failure in self._current(model).values()), default=None)

    async def run(self) -> None:
        """Ready what is wanted, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                model, candidate = await self._wanted.get()
                tasks.create_task(self._ready(model, candidate), name=f"ready {model}")

    async def _ready(self, model: str, candidate: Candidate) -> None:
        member, began_s = candidate.holder.member, self._clock()
        patience_s = _patience_s(candidate.holder.model.time_to_ready_ms / 1e3)
        server = member.endpoint.server
        log.info("readying a model", extra={"model": model, "server": server})
        outcome = "failed"
        try:
            async with aclosing(self._transport.ready(member.endpoint, model)) as news:
                async for progress in news:
                    if self._clock() - began_s > patience_s:
                        text = f"the model {model!r} has been {progress.activity} on {server} for {patience_s:.0f} s"
                        raise unavailable(text, retry_after_s=_SLOW_AGAIN_S, reason="MODEL_SLOW")
                    self._under_way[model] = inference_pb2.Progress(
                        server=server,
                        activity=progress.activity,
                        fraction=progress.fraction,
                        remaining=progress.remaining if progress.HasField("remaining") else None,
                    )
                    self._on_news(model)
            outcome = "ok"
            self._failures.pop(model, None)
            self._on_hot(member.key, model)
        except Refusal as refusal:
            until_s = self._clock() + (refusal.retry_after_s or _AGAIN_S)
            self._failures.setdefault(model, {})[member.key] = _Failure(refusal, until_s)
            log.warning("a model is not ready", extra={"model": model, "server": server, "why": refusal.message})
        finally:
            self._under_way.pop(model, None)
            self._outcomes.labels(model, outcome).inc()
            took_s = round(self._clock() - began_s, 2)
            log.info("readied", extra={"model": model, "server": server, "outcome": outcome, "took_s": took_s})
            self._on_news(model)

    def _current(self, model: str) -> Mapping[Key, _Failure]:
        failures = self._failures.get(model)
        if not failures:
            return {}
        now_s = self._clock()
        return {key: failure for key, failure in failures.items() if failure.until_s > now_s}


def _patience_s(expected_s: float) -> float:
    """How long a server may take that was expected to take so long, 0 where nobody knows."""
    return max(_LEAST_PATIENCE_S, _PATIENCE * expected_s) if expected_s else _UNKNOWN_PATIENCE_S
