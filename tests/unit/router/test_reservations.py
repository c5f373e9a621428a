"""Reservations on a fake clock: whatever is said of them, in whatever order, nothing of them stays."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.context import Context
from prometheus_client import CollectorRegistry

from discovery.endpoint import Endpoint
from router.direct import Direct, Tickets
from router.ejection import BreakerState
from router.errors import EndpointError, Fault
from router.reservations import ReservationMetrics, Reservations
from stoker.v1 import generation_pb2, inference_pb2, router_pb2, worker_link_pb2
from stoker_common import status, tracing
from stoker_common.refusal import Code, Refusal, exhausted, unavailable
from stoker_common.tickets import TicketKeys
from tests.fakes.until import until
from tests.unit.router.builders import MODEL, endpoint, key
from tests.unit.router.test_router import A1, A2, Bench, Scripted, finished, started

News = worker_link_pb2.DirectStream
LEASE_S = 10.0


class Up:
    """A router with two servers, and its reservations."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.transport = Scripted()
        self.bench = Bench(self.transport, *(endpoints or (A1, A2)))
        self.counts = CollectorRegistry()
        self.reservations = Reservations(
            lease_s=LEASE_S,
            clock=self.bench.clock,
            metrics=self.bench.metrics,
            counts=ReservationMetrics(self.counts),
            transport=self.transport,
            rooms=self.bench.admission.rooms,
        )
        ids = iter(range(1, 1 << 30))
        self.direct = Direct(
            self.bench.router,
            self.bench.learned,
            self.reservations,
            Tickets(TicketKeys(), "router-a", self.bench.clock, LEASE_S),
            self.bench.metrics,
            tracing.configure("test", environ={}),
            self.bench.clock,
            lambda: next(ids).to_bytes(8, "big"),
        )

    async def route(
        self,
        tried: tuple[str, ...] = (),
        lost: tuple[router_pb2.LostStream, ...] = (),
        unreached: tuple[str, ...] = (),
        **fields: Any,
    ) -> router_pb2.RouteResponse:
        asked = generation_pb2.Generation(**{"model": MODEL, "text": "x" * 400, "request_id": "r", **fields})
        return await self.direct.route(asked, tried, unreached, lost, None, Context())

    def on(self, server: str) -> Endpoint:
        return next(each for each in (A1, A2) if each.server == server)

    def say(self, routed: router_pb2.RouteResponse, **news: object) -> None:
        said = News(reservation=routed.reservation, **news)  # type: ignore[arg-type]
        self.reservations.news(self.on(routed.server), said)

    def ended(self, how: str) -> float:
        return self.counts.get_sample_value("stoker_router_reservations_ended_total", {"how": how}) or 0.0

    def empty(self) -> bool:
        ledger = self.bench.learned.ledger
        booked = [account.own_streams or account.own_prompt_tokens for account in ledger.accounts.values()]
        running = self.bench.router.running
        return not (
            len(self.reservations)
            or ledger.in_flight
            or any(booked)
            or running.on(key(A1))
            or running.on(key(A2))
            or self.counts.get_sample_value("stoker_router_reservations")
        )


OVERLOADED = exhausted("many wait", reason="SERVER_OVERLOADED", retry_after_s=5.0)


def error(code: Code, reason: str = "", retry_after_s: float | None = None) -> worker_link_pb2.StreamError:
    details = status.to_rpc_status(Refusal(code, "it broke", reason=reason, retry_after_s=retry_after_s))
    return worker_link_pb2.StreamError(code=code.value, message="it broke", status=details.SerializeToString())


def of(message: inference_pb2.GenerateStreamResponse) -> bytes:
    return message.SerializeToString()


async def test_it_is_booked_as_a_relayed_request_is_until_the_server_says_that_it_has_ended() -> None:
    up = Up()
    routed = await up.route()
    account = up.bench.learned.ledger.accounts[key(up.on(routed.server))]
    assert (account.own_streams, routed.address, routed.request_id) == (1, up.on(routed.server).address, "r")
    assert account.own_prompt_tokens > 0
    assert routed.pick.candidates == 2
    up.say(routed, part=of(started(up.on(routed.server))))
    assert (account.own_streams, account.own_prompt_tokens) == (1, 0)
    up.bench.clock.advance(2)
    up.say(routed, part=of(finished(50)), last=True)
    assert up.empty()
    assert up.ended("ok") == 1
    assert up.bench.requests("ok") == 1


async def test_bursts_do_not_herd() -> None:
    up = Up()
    routed = [await up.route() for _ in range(8)]
    assert {server: [each.server for each in routed].count(server) for server in ("a-1", "a-2")} == {"a-1": 4, "a-2": 4}


async def test_it_ends_by_itself_and_says_nothing_of_the_server() -> None:
    up = Up()
    routed = await up.route()
    up.bench.clock.advance(LEASE_S)
    up.reservations.lapse()
    assert not up.empty()
    up.bench.clock.advance(0.1)
    up.reservations.lapse()
    assert up.empty()
    assert up.ended("expired") == 1
    assert up.bench.learned.breakers.state(key(up.on(routed.server))) is BreakerState.ALIVE


async def test_the_server_keeps_it_alive() -> None:
    up = Up()
    routed = await up.route()
    for _ in range(100):
        up.bench.clock.advance(LEASE_S - 1)
        up.reservations.lapse()
        up.say(routed)
    assert not up.empty()
    up.bench.clock.advance(LEASE_S + 1)
    up.reservations.lapse()
    assert up.empty()


async def test_another_servers_word_counts_for_nothing() -> None:
    up = Up()
    routed = await up.route()
    other = A1 if routed.server == "a-2" else A2
    up.reservations.news(other, News(reservation=routed.reservation, last=True))
    assert not up.empty()


@pytest.mark.parametrize("who", ["server", "client"])
async def test_failures_reach_the_breaker(who: str) -> None:
    up = Up(A1)
    for _ in range(5):
        routed = await up.route()
        if who == "server":
            up.say(routed, last=True, error=error(Code.UNAVAILABLE, "ENGINE_DEAD"))
        else:
            up.direct.release(router_pb2.LostStream(reservation=routed.reservation, code=14, message="Socket closed"))
    assert up.empty()
    assert up.ended("failed") == 5
    assert up.bench.learned.breakers.state(key(A1)) is BreakerState.EJECTED


@pytest.mark.parametrize(
    "lost", [{"unreachable": True, "code": 14}, {"code": 0}, {"code": 1}], ids=["unreachable", "unused", "cancelled"]
)
async def test_a_client_that_cannot_reach_a_server_ejects_none(lost: dict[str, int]) -> None:
    up = Up(A1)
    for _ in range(30):
        routed = await up.route()
        up.direct.release(router_pb2.LostStream(reservation=routed.reservation, **lost))  # type: ignore[arg-type]
    assert up.empty()
    assert up.bench.learned.breakers.state(key(A1)) is BreakerState.ALIVE


@pytest.mark.parametrize(
    "lost",
    [
        {"code": 8, "reason": "SERVER_OVERLOADED"},
        {"code": 14, "reason": "SERVER_DRAINING"},
        {"code": 14, "reason": "MODEL_LEAVING"},
        # Its own mistakes, and its clock.
        {"code": 3, "reason": "INVALID_FIELD"},
        {"code": 4, "reason": ""},
        {"code": 16, "reason": "TICKET_EXPIRED"},
    ],
    ids=lambda lost: str(lost["reason"]),
)
async def test_a_client_that_hears_first_that_a_server_is_busy_ejects_none(lost: dict[str, Any]) -> None:
    up = Up(A1)
    for _ in range(10):
        routed = await up.route()
        up.direct.release(router_pb2.LostStream(reservation=routed.reservation, message="busy", **lost))
        up.bench.clock.advance(6)
    assert up.empty()
    assert up.bench.learned.breakers.state(key(A1)) is BreakerState.ALIVE


async def test_a_client_can_say_nothing_of_what_it_does_not_hold() -> None:
    up = Up(A1)
    for i in range(50):
        up.direct.release(router_pb2.LostStream(reservation=b"%d" % i, code=14))
    assert up.bench.learned.breakers.state(key(A1)) is BreakerState.ALIVE


async def test_a_second_route_avoids_what_was_tried_and_the_third_is_the_last() -> None:
    up = Up(A1, A2, endpoint("a-3"), endpoint("a-4"))
    tried: tuple[str, ...] = ()
    lost: tuple[router_pb2.LostStream, ...] = ()
    for _ in range(3):
        routed = await up.route(tried, lost)
        assert routed.server not in tried
        tried += (routed.server,)
        lost = (router_pb2.LostStream(reservation=routed.reservation, code=14, message="broke"),)
    with pytest.raises(Refusal) as refused:
        await up.route(tried, lost)
    assert (refused.value.code, refused.value.reason) == (Code.UNAVAILABLE, "SERVER_FAILED")
    assert up.empty()


async def test_what_a_client_could_not_connect_to_is_no_attempt() -> None:
    """As in the relay: what never got there has cost nothing, and another server may be reachable."""
    others = [endpoint(f"a-{number}") for number in range(1, 7)]
    up = Up(*others)
    tried: tuple[str, ...] = ()
    lost: tuple[router_pb2.LostStream, ...] = ()
    for _ in others:
        routed = await up.route(tried, lost, unreached=tried)
        assert routed.server not in tried
        tried += (routed.server,)
        lost = (router_pb2.LostStream(reservation=routed.reservation, unreachable=True),)
    up.reservations.told(lost[0])
    assert up.empty()


@pytest.mark.parametrize("who", ["server", "client"])
async def test_a_server_that_is_overloaded_gets_no_other_until_it_said(who: str) -> None:
    up = Up()
    first = await up.route()
    if who == "server":
        up.say(first, last=True, error=error(Code.RESOURCE_EXHAUSTED, "SERVER_OVERLOADED", retry_after_s=3.0))
    else:
        lost = router_pb2.LostStream(reservation=first.reservation, code=8, reason="SERVER_OVERLOADED")
        lost.retry_after.FromSeconds(3)
        up.direct.release(lost)
    assert {(await up.route()).server for _ in range(4)} == {"a-1", "a-2"} - {first.server}
    up.bench.clock.advance(3.1)
    assert (await up.route()).server == first.server


async def test_who_gets_no_reservation_is_counted_and_logged_as_any_request(caplog: pytest.LogCaptureFixture) -> None:
    up = Up()
    with caplog.at_level("INFO"), pytest.raises(Refusal):
        await up.route(model="nobody's")
    assert up.bench.requests("not_found", zone="", model="") == 1
    up.bench.admission.rooms.refused(key(A1), OVERLOADED)
    up.bench.admission.rooms.refused(key(A2), OVERLOADED)
    waits = asyncio.ensure_future(up.route())
    await until(lambda: bool(up.bench.admission.queues()))
    waits.cancel()
    await asyncio.wait((waits,))
    assert up.bench.requests("cancelled", zone="") == 1
    lines = [record for record in caplog.records if record.message == "request"]
    assert [(line.__dict__["outcome"], line.__dict__["direct"]) for line in lines[:1]] == [("not_found", "refused")]
    assert up.empty()


async def test_a_stream_that_goes_on_is_booked_at_what_is_computed_for_it() -> None:
    """Prompt and what was generated: its own prompt is empty, or shorter."""
    one = replace(A1, resume_modes=("prefill",))
    up = Up(one)
    state = generation_pb2.ResumeState(model=MODEL, prompt_token_ids=range(300))
    state.outputs.add(token_ids=range(50), text_bytes=100)
    await up.route(resume=state)
    assert up.bench.learned.ledger.accounts[key(one)].own_prompt_tokens == 350


async def test_news_of_what_was_before_the_link_came_up_is_taken_as_of_then() -> None:
    up = Up()
    routed = await up.route()
    account = up.bench.learned.ledger.accounts[key(up.on(routed.server))]
    up.bench.clock.advance(3.0)
    ago = Duration(seconds=2)
    up.say(routed, part=of(started(up.on(routed.server))), ago=ago)
    assert account.own_prompt_tokens == 0
    up.say(routed, part=of(started(up.on(routed.server))))  # another process of the server's may have attached
    up.say(routed, part=of(finished(5)), last=True)
    labels = {"model": MODEL, "zone": "a"}
    assert up.bench.registry.get_sample_value("stoker_router_ttft_seconds_sum", labels) == 1.0
    assert up.empty()


async def test_an_operator_moves_it() -> None:
    up = Up()
    routed = await up.route()
    where = key(up.on(routed.server))
    moved = up.bench.router.running.empty(
        where,
        lambda attempt: up.bench.router.onward.movable(where, attempt),
        lambda: EndpointError(Fault.MOVED, unavailable("maintenance")),
    )
    assert (moved, up.transport.moved) == (1, [routed.reservation])
    up.say(routed, last=True, error=error(Code.UNAVAILABLE, "SERVER_MAINTENANCE"))
    assert up.empty()
    assert up.bench.learned.breakers.state(where) is BreakerState.ALIVE


# What may be said of a reservation, by whom, at any moment.
ACTIONS: dict[str, Callable[[Up, router_pb2.RouteResponse], object]] = {
    "starts": lambda up, r: up.say(r, part=of(started(up.on(r.server)))),
    "still there": lambda up, r: up.say(r),
    "finishes": lambda up, r: up.say(r, part=of(finished(5)), last=True),
    "fails": lambda up, r: up.say(r, last=True, error=error(Code.INTERNAL)),
    "refused": lambda up, r: up.say(r, last=True, error=error(Code.RESOURCE_EXHAUSTED, "SERVER_OVERLOADED")),
    "cancelled": lambda up, r: up.say(r, last=True, error=error(Code.CANCELLED)),
    "late": lambda up, r: up.say(r, last=True, error=error(Code.DEADLINE_EXCEEDED)),
    "client lost it": lambda up, r: up.direct.release(router_pb2.LostStream(reservation=r.reservation, code=14)),
    "client gives it back": lambda up, r: up.direct.release(router_pb2.LostStream(reservation=r.reservation)),
    "link lost": lambda up, r: up.reservations.lost(key(up.on(r.server))),
    "time": lambda up, r: up.bench.clock.advance(3.0),
    "look": lambda up, r: up.reservations.lapse(),
}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
async def test_nothing_leaks(seed: int) -> None:
    rng = random.Random(seed)
    up, routed = Up(), list[router_pb2.RouteResponse]()
    for _ in range(rng.randrange(60)):
        if not routed or (rng.random() < 0.3 and len(up.reservations) < 8):
            if up.bench.admission.rooms.overloaded_now():
                up.bench.clock.advance(0.2)  # else it would wait for time to pass
            try:
                routed.append(await up.route())
            except Refusal:
                up.bench.clock.advance(400)  # both are ejected
        else:
            ACTIONS[rng.choice(list(ACTIONS))](up, rng.choice(routed))
        assert len(up.reservations) == up.bench.learned.ledger.in_flight
    up.bench.clock.advance(LEASE_S + 0.1)
    up.reservations.lapse()
    assert up.empty()
