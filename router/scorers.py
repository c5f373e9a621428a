"""What a request costs on an endpoint, in expected milliseconds until it is served. Pure; lower is better.

Every preference is an expected time, so that preferences add up and can be read. Warm model, session stickiness and
shortest queue are consequences of the sum, and so is leaving a session's server when the wait there exceeds what its
cache saves.
"""

from dataclasses import dataclass
from math import exp, pi, sqrt
from typing import NamedTuple

from discovery.endpoint import Residency
from router.ledger import UNTOLD, Account, Typical
from router.request import Request
from router.snapshot import Holder

# From here on it is the KV cache and not the batch that bounds what runs.
KV_FULL = 0.9
# Who looks in at a random moment finds the longer streams: twice as long as the mean, where lengths are exponential.
FOUND_LONGER = 2.0
# Where our prompt is not computed another one will be: who comes next goes where less waits. Half of what ours holds up
# would be held up all the same; chosen on the workloads that are made up (docs/adr/0158).
NOT_INSTEAD = 0.5
# How far a request's own pace is off what its server measures when it is sent there: the standard deviation, as a share
# (docs/adr/0164).
PACE_SPREAD = 0.1
_DENSITY = 1.0 / (PACE_SPREAD * sqrt(2.0 * pi))


class Cost(NamedTuple):
    """The terms, in ms. A tuple, because one is made for every candidate of every request."""

    ready_ms: float
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    zone_ms: float
    total_ms: float
    cached_tokens: int
    # Waiting for a place where few may be taken, soon after the endpoint's return.
    ramp_ms: float = 0.0
    # Of the queue's: waiting for a place where the batch is full.
    full_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Rates:
    """What is assumed where a server has not measured yet, and what it costs to leave the zone.

    The defaults are a small model's on two processor cores: an engine that is faster says so with its first report.
    """

    prefill_tokens_per_second: float = 500.0
    itl_ms: float = 30.0
    # How much one more stream slows a decoding batch, relative to its time between tokens. Measured with vLLM on an
    # H100, 8B: 155 tok/s alone, 92 tok/s each at 32, 42 each at 128; that is 2 % a stream.
    decode_slowdown_per_stream: float = 0.02
    # A pace that is just good enough, and the wait for a first token that is just as bad. They are what is asked of the
    # fleet (docs/routing.md), and no fit.
    just_itl_ms: float = 50.0
    just_first_token_ms: float = 2000.0
    # A model that is not hot and whose time to be ready nobody has measured.
    unmeasured_ready_ms: float = 30_000.0
    # The same of a LoRA adapter whose base is hot: megabytes, of which most loads take some 10 ms.
    unmeasured_adapter_ms: float = 1_000.0
    # What leaving the zone costs beside the way itself: traffic between zones is paid for, and its path is less sure.
    leave_zone_ms: float = 50.0

    def pace_worth(self, itl_ms: float) -> float:
        """What a ms more between tokens is worth, in ms until a first token, where there are `itl_ms` between them now.

        A pace costs as its square: nobody misses a ms where tokens come faster than one reads (docs/adr/0158). And
        paces differ: the nearer to what is just good enough, the more of them a ms more brings beyond it, each of which
        is as bad as a first token just too late (docs/adr/0164). Beyond it a ms is worth what it is at it.
        """
        just_ms = self.just_itl_ms
        share = itl_ms / just_ms if itl_ms < just_ms else 1.0
        off = (1.0 - share) / PACE_SPREAD
        return self.just_first_token_ms / just_ms * (2.0 * share + _DENSITY * exp(-0.5 * off * off))


def cost(
    request: Request,
    holder: Holder,
    account: Account,
    held_tokens: int,
    way_ms: float,
    rates: Rates,
    now_s: float,
    share: float = 1.0,
    typical: Typical = UNTOLD,
) -> Cost:
    """The request's cost on `holder`.

    `held_tokens` of the request's session are in the cache there; `way_ms` is the way to its zone, 0 at home.
    `share` of its places may be taken: less than 1 soon after its return.
    """
    # Run for some sixteen candidates of each request: what is not there is not called for.
    load, tokens, output_tokens = account.load, request.prompt_tokens, request.expected_output_tokens
    prefill_per_s = (
        load.prefill_tokens_per_second or typical.prefill_tokens_per_second or rates.prefill_tokens_per_second
    )
    itl_ms = load.itl_ms or typical.itl_ms or rates.itl_ms
    streams = account.streams

    ready_ms = 0.0 if holder.model.residency is Residency.HOT else _ready_ms(holder, load.room_ms, rates)
    queue_ms = account.waiting_prompt_tokens(now_s, prefill_per_s) / prefill_per_s * 1e3
    places, lasts_ms = holder.member.endpoint.max_streams, output_tokens * itl_ms
    if load.waiting and load.kv_usage >= KV_FULL:
        places = max(1, min(places, load.running))
    full_ms = _full_ms(streams, places, lasts_ms) if streams > places - 1 else 0.0
    queue_ms += full_ms
    ramp_ms = 0.0 if share >= 1.0 else _full_ms(streams, max(1, int(share * places)), lasts_ms) - full_ms
    # The engine always computes the last token of a prompt itself.
    cached = held_tokens if held_tokens < tokens else tokens - 1
    work: float = tokens - cached
    if attention := load.attention_tokens or typical.attention_tokens:
        work *= 1.0 + (cached + work / 2) / attention  # as prompt_work
    computing_ms = work / prefill_per_s * 1e3
    # Its prompt joins a step, which takes as long as the streams' do besides.
    prefill_ms = load.itl_ms + computing_ms
    # A step reads each stream's context: the more of it, the slower our tokens are, and with ours theirs.
    if per_token_ms := load.step_ms_per_context_token or typical.step_ms_per_context_token:
        slower_ms = per_token_ms * (account.context_tokens + streams * (tokens + output_tokens / 2))
    else:
        slower_ms = streams * 2 * rates.decode_slowdown_per_stream * itl_ms
    # And our prompt holds each stream there up once, in so far as no other would instead. A delay is worth itself at
    # most, so that an answer of five tokens counts five times what each is later.
    worth, found_tokens = rates.pace_worth(itl_ms), FOUND_LONGER * output_tokens
    held_ms = NOT_INSTEAD * streams * computing_ms / found_tokens
    decode_ms = (worth if worth < output_tokens else output_tokens) * slower_ms
    decode_ms += (worth if worth < found_tokens else found_tokens) * held_ms
    return Cost(
        ready_ms,
        queue_ms,
        prefill_ms,
        decode_ms,
        way_ms,
        ready_ms + queue_ms + prefill_ms + decode_ms + way_ms + ramp_ms,
        cached,
        ramp_ms,
        full_ms,
    )


def first_token_ms(of: Cost, way_ms: float) -> float:
    """What of a cost lies before the first token, with the way to its zone and back."""
    return of.ready_ms + of.queue_ms + of.prefill_ms + of.ramp_ms + way_ms


def _full_ms(streams: float, places: int, lasts_ms: float) -> float:
    """The wait for a place: one becomes free whenever a stream ends, evenly over a stream's time."""
    over = streams - places + 1
    return over / places * lasts_ms if over > 0 else 0.0


def _ready_ms(holder: Holder, room_ms: float, rates: Rates) -> float:
    """Of a model that is not hot."""
    if not holder.needs_room:
        return holder.model.time_to_ready_ms or rates.unmeasured_adapter_ms
    return (holder.model.time_to_ready_ms or rates.unmeasured_ready_ms) + room_ms
