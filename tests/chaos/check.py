"""Holds a history against what the unfaulted run says. Pure, but for the simulator that gives the expectation."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from model_server.engine import EngineRequest
from model_server.engines.sim import SimEngine
from model_server.engines.sim_settings import SimSettings
from tests.chaos.history import Asked, Broke, Ended, Event, Got
from tests.chaos.script import MODEL, Ask


@dataclass(frozen=True, slots=True)
class Expected:
    """A stream as it comes without faults."""

    token_ids: tuple[int, ...]
    text: str


# The promise is 50 ms at p99, which the page tells; a single one may meet a pause of a busy machine.
_REFUSED_WITHIN_S = 1.0
# What a mesh that is full says: docs/operations.md. Each tells when to come back.
_REFUSALS = frozenset({"QUEUE_FULL", "WAIT_EXCEEDS_DEADLINE", "SERVER_OVERLOADED"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """One stream. `wrong` is empty if it passed. `gap_s`: its longest silence after its first token. `refused_s`: how
    long it took to refuse it, for want of room and before its first token; None if it was not."""

    stream: str
    wrong: str
    gap_s: float
    resumed: bool
    rerouted: bool
    refused_s: float | None = None


@dataclass(slots=True)
class _Seen:
    asked_s: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    broke: list[Broke] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)


async def unfaulted(asks: Sequence[Ask]) -> dict[str, Expected]:
    """What an engine without faults says to each."""
    engine = SimEngine(MODEL, SimSettings(load_ms=0, step_base_ms=0, step_per_stream_ms=0, max_streams=64))
    await engine.start()
    try:
        found = await asyncio.gather(*(_one(engine, ask) for ask in asks))
    finally:
        await engine.stop()
    return {ask.name: each for ask, each in zip(asks, found, strict=True)}


async def _one(engine: SimEngine, ask: Ask) -> Expected:
    generation = ask.generation()
    prompt = tuple(await engine.encode(generation))
    request = EngineRequest(ask.name, prompt, generation.sampling, ask.max_tokens)
    outputs = [output async for output in engine.generate(request)]
    ids = tuple(token_id for output in outputs for token_id in output.token_ids)
    return Expected(ids, "".join(output.text for output in outputs))


def judge(events: Iterable[Event], expected: Mapping[str, Expected], *, refusable: bool = False) -> list[Verdict]:
    """The verdict on each expected stream, in their order. `refusable`: for want of room they may be refused."""
    seen: dict[str, _Seen] = defaultdict(_Seen)
    for event in events:
        stream = seen[event.stream]
        if isinstance(event, Asked):
            stream.asked_s = event.at_s
        elif isinstance(event, Got):
            if event.token_ids:
                stream.at_s.append(event.at_s)
            stream.token_ids += event.token_ids
            stream.text.append(event.text)
        elif isinstance(event, Broke):
            stream.broke.append(event)
        else:
            stream.ended.append(event)
    return [_verdict(name, seen[name], wanted, refusable) for name, wanted in expected.items()]


def _verdict(name: str, seen: _Seen, wanted: Expected, refusable: bool) -> Verdict:
    refusal = next((broke for broke in seen.broke if broke.reason in _REFUSALS and not broke.again), None)
    if refusable and refusal is not None and not seen.token_ids:
        took_s = refusal.at_s - seen.asked_s
        wrong = f"refused only after {took_s:.2f} s" if took_s > _REFUSED_WITHIN_S else ""
        return Verdict(name, wrong, 0.0, False, False, refused_s=took_s)
    gap_s = max((after - before for before, after in zip(seen.at_s, seen.at_s[1:], strict=False)), default=0.0)
    rerouted = any(broke.again for broke in seen.broke)
    resumed = rerouted or any(len(ended.attempts) > 1 for ended in seen.ended)
    return Verdict(name, _wrong(seen, wanted), gap_s, resumed, rerouted)


def _wrong(seen: _Seen, wanted: Expected) -> str:
    """What is wrong with a stream, in words; empty if nothing is."""
    at = next(
        (i for i, pair in enumerate(zip(seen.token_ids, wanted.token_ids, strict=False)) if pair[0] != pair[1]), -1
    )
    if at >= 0:
        return f"token {at} of {len(wanted.token_ids)} is not the unfaulted run's ({_how(seen, wanted, at)})"
    given_up = next((broke for broke in seen.broke if not broke.again), None)
    if given_up is not None:
        said = f"{given_up.code} {given_up.reason}: {given_up.message}"
        return f"failed {'after' if seen.token_ids else 'before'} its first token: {said}"
    if len(seen.token_ids) > len(wanted.token_ids):
        return f"{len(seen.token_ids)} tokens, {len(wanted.token_ids)} expected"
    if len(seen.token_ids) < len(wanted.token_ids):
        return f"lost {len(wanted.token_ids) - len(seen.token_ids)} tokens at its end"
    if "".join(seen.text) != wanted.text:
        return "the text is not the unfaulted run's"
    if len(seen.ended) != 1:
        return f"ended {len(seen.ended)} times"
    if seen.ended[0].completion_tokens != len(wanted.token_ids):
        return f"usage counts {seen.ended[0].completion_tokens} tokens, {len(wanted.token_ids)} were sent"
    return ""


def _how(seen: _Seen, wanted: Expected, at: int) -> str:
    """Lost, repeated or otherwise: by where the next tokens lie in what was expected."""
    found, ids = tuple(seen.token_ids[at : at + 3]), wanted.token_ids
    places = [place for place in range(len(ids)) if ids[place : place + len(found)] == found]
    if not places:
        return "other tokens"
    return f"lost {places[0] - at}" if places[0] > at else f"repeated {at - places[0]}"
