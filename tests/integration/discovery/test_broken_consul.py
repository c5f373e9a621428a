"""A Consul that lies, refuses, hangs or forgets, over HTTP: the set never shrinks, and every failure is typed."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from aiohttp import web

from discovery.catalog import CatalogState
from discovery.codec import SERVICE, ServiceRecord, encode
from discovery.consul_client import ConsulClient
from discovery.consul_watcher import ConsulWatcher
from discovery.errors import CatalogError
from discovery.zone_watch import WatcherTiming
from tests.integration.discovery.kit import Seen, make_endpoint, running, until

pytestmark = pytest.mark.integration

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SECRET = "a-token-nobody-may-read"
QUICK = WatcherTiming(wait_s=0.2, retry_first_s=0.01, retry_most_s=0.05)


def rows_of(*records: ServiceRecord) -> list[object]:
    return [
        {
            "Node": {"Address": "127.0.0.1"},
            "Service": {"ID": record.service_id, "Address": record.address, "Port": record.port, "Meta": record.meta},
            "Checks": [],
        }
        for record in records
    ]


class BrokenConsul:
    """Answers health queries with `answer`, which tests replace, and remembers what was asked."""

    def __init__(self) -> None:
        self.answer: Handler = self.good
        self.index = 100
        self.asked: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        return await self.answer(request)

    async def good(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("index") == str(self.index):
            await asyncio.sleep(0.1)
        return self.reply(rows_of(*(encode(make_endpoint(f"server-{place}")) for place in range(3))))

    def reply(self, rows: object, *, known_leader: str = "true", last_contact: str = "0") -> web.Response:
        headers = {
            "X-Consul-Index": str(self.index),
            "X-Consul-KnownLeader": known_leader,
            "X-Consul-LastContact": last_contact,
        }
        return web.Response(text=json.dumps(rows), headers=headers, content_type="application/json")


@pytest.fixture
async def broken() -> AsyncIterator[BrokenConsul]:
    yield BrokenConsul()


@pytest.fixture
async def client(broken: BrokenConsul) -> AsyncIterator[ConsulClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", broken.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with ConsulClient(f"http://127.0.0.1:{port}", environ={"CONSUL_HTTP_TOKEN": SECRET}) as client:
        yield client
    await runner.cleanup()


def status(code: int) -> Callable[[BrokenConsul], Handler]:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, text=f"trouble\x1b[31m\n{code}")

    return lambda _: answer


def body(text: str, **headers: str) -> Callable[[BrokenConsul], Handler]:
    async def answer(_: web.Request) -> web.StreamResponse:
        known = {"X-Consul-Index": "101", "X-Consul-KnownLeader": "true"}
        return web.Response(
            text=text, headers=known | {name.replace("_", "-"): value for name, value in headers.items()}
        )

    return lambda _: answer


def hang(_: BrokenConsul) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    return answer


def leaderless(broken: BrokenConsul) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return broken.reply([], known_leader="false")

    return answer


def out_of_touch(broken: BrokenConsul) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return broken.reply([], last_contact="600000")

    return answer


def no_index(_: BrokenConsul) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(text="[]")

    return answer


def cut_off(_: BrokenConsul) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    return answer


TROUBLES = {
    "403": status(403),
    "404": status(404),
    "429": status(429),
    "500": status(500),
    "html": body("<html>captive portal</html>"),
    "object": body("{}"),
    "nesting": body("[" * 100_000),
    "bad index": body("[]", X_Consul_Index="soon"),
    "no index": no_index,
    "leaderless": leaderless,
    "out of touch": out_of_touch,
    "cut off": cut_off,
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_the_set_stays_as_it_was(
    broken: BrokenConsul,
    client: ConsulClient,
    trouble: Callable[[BrokenConsul], Handler],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    seen, watcher = Seen(), ConsulWatcher(client, "zone-a", rng=random.Random(1), zones=(), timing=QUICK)
    async with running(watcher.run(seen.publish)):
        await seen.until(lambda: len(seen.zone().entries) == 3)
        before = seen.zone()
        broken.answer = trouble(broken)
        watch = watcher.watches[0]
        await until(lambda: watch.failures + watch.doubted >= 3)
        assert seen.zone().entries == before.entries
        assert seen.zone().error
        broken.answer = broken.good
        await seen.until(lambda: not seen.zone().error)
        assert seen.zone().entries == before.entries
        assert (seen.zone().confirmed_at_s or 0.0) > (before.confirmed_at_s or 0.0)
    assert SECRET not in caplog.text
    assert "\x1b" not in caplog.text


async def test_an_empty_answer_makes_all_missing_and_none_gone(broken: BrokenConsul, client: ConsulClient) -> None:
    seen, watcher = Seen(), ConsulWatcher(client, "zone-a", rng=random.Random(1), zones=(), timing=QUICK)

    async def empty(_: web.Request) -> web.StreamResponse:
        return broken.reply([])

    async with running(watcher.run(seen.publish)):
        await seen.until(lambda: len(seen.zone().entries) == 3)
        broken.answer = empty
        await seen.until_state(CatalogState.MISSING)
        assert len(seen.zone().entries) == 3
        broken.answer = broken.good
        await seen.until_state(CatalogState.PASSING)


async def test_an_index_that_goes_back_starts_anew(broken: BrokenConsul, client: ConsulClient) -> None:
    seen, watcher = Seen(), ConsulWatcher(client, "zone-a", rng=random.Random(1), zones=(), timing=QUICK)
    async with running(watcher.run(seen.publish)):
        await until(lambda: any(request.query.get("index") == "100" for request in broken.asked))
        broken.index = 5
        broken.asked.clear()
        await until(lambda: any("index" not in request.query for request in broken.asked))
        await until(lambda: any(request.query.get("index") == "5" for request in broken.asked))
        broken.index = 0
        await until(lambda: any(request.query.get("index") == "1" for request in broken.asked))
        assert not any(request.query.get("index") == "0" for request in broken.asked)
        assert len(seen.zone().entries) == 3


async def test_queries_that_do_not_block_are_paced(broken: BrokenConsul, client: ConsulClient) -> None:
    async def at_once(_: web.Request) -> web.StreamResponse:
        return broken.reply([])

    broken.answer = at_once
    watcher = ConsulWatcher(client, "zone-a", rng=random.Random(1), zones=(), timing=WatcherTiming(retry_first_s=0.05))
    async with running(watcher.run(lambda _: None)):
        # A rate has no event to wait for: this is the time over which it is counted.
        await asyncio.sleep(1.0)
    assert 2 <= len(broken.asked) < 15


async def test_a_hang_shows_after_the_wait_and_holds_up_no_other_zone(
    broken: BrokenConsul, client: ConsulClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery.consul_http.CALL_TIMEOUT_S", 0.5)
    stuck = hang(broken)

    async def b_hangs(request: web.Request) -> web.StreamResponse:
        return await (stuck if request.query.get("dc") == "zone-b" else broken.good)(request)

    broken.answer = b_hangs
    seen = Seen()
    watcher = ConsulWatcher(client, "zone-a", rng=random.Random(1), zones=("zone-b",), timing=QUICK)
    async with running(watcher.run(seen.publish)):
        assert await seen.until(lambda: len(seen.zone().entries) == 3) < 0.5
        await seen.until(lambda: "in time" in seen.zone("zone-b").error, within_s=3.0)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("403", "DENIED"),
        ("404", "NOT_FOUND"),
        ("429", "OVERLOADED"),
        ("500", "SERVER_ERROR"),
        ("html", "BAD_ANSWER"),
        ("nesting", "BAD_ANSWER"),
        ("no index", "BAD_ANSWER"),
        ("bad index", "BAD_ANSWER"),
        ("cut off", "UNREACHABLE"),
    ],
)
async def test_failures_are_typed(broken: BrokenConsul, client: ConsulClient, trouble: str, reason: str) -> None:
    broken.answer = TROUBLES[trouble](broken)
    with pytest.raises(CatalogError) as failed:
        await client.services(SERVICE, "zone-a", 0, 0.0)
    assert failed.value.reason == reason
    assert failed.value.retryable
    assert SECRET not in str(failed.value)


async def test_an_agent_that_is_not_there_is_unreachable() -> None:
    async with ConsulClient("127.0.0.1:1", environ={}) as client:
        with pytest.raises(CatalogError, match=r"127\.0\.0\.1:1 cannot be reached") as failed:
            await client.zones()
    assert failed.value.reason == "UNREACHABLE"


async def test_stale_and_the_token_go_along_and_an_explicit_token_wins(
    broken: BrokenConsul, client: ConsulClient
) -> None:
    await client.services(SERVICE, "zone-b", 7, 1.5)
    asked = broken.asked[-1]
    assert asked.path == f"/v1/health/service/{SERVICE}"
    assert dict(asked.query) == {"dc": "zone-b", "index": "7", "wait": "1.5s", "stale": "1"}
    assert asked.headers["X-Consul-Token"] == SECRET
    async with ConsulClient(client.address, token="mine", environ={"CONSUL_HTTP_TOKEN": SECRET}) as other:
        await other.services(SERVICE, "zone-b", 0, 0.0)
    assert broken.asked[-1].headers["X-Consul-Token"] == "mine"
    assert "index" not in broken.asked[-1].query


async def test_headers_are_kept(broken: BrokenConsul, client: ConsulClient) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return broken.reply([], known_leader="false", last_contact="1234")

    broken.answer = answer
    found = await client.services(SERVICE, "zone-a", 0, 0.0)
    assert (found.index, found.known_leader, found.last_contact_ms) == (100, False, 1234)


@pytest.mark.parametrize("address", ["", "http://", "ftp://host:1", "host:port", "host:99999", "host:1/v1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="no address of a Consul agent"):
        ConsulClient(address)


async def test_poison_from_http_is_skipped(broken: BrokenConsul, client: ConsulClient) -> None:
    good = encode(make_endpoint())
    bad = replace(good, service_id="bad", meta={"format": "1", "load-gpu": "NaN"})

    async def answer(_: web.Request) -> web.StreamResponse:
        return broken.reply([*rows_of(good, bad), None, 7, {"Service": {"ID": 3}}, {"Service": None}])

    broken.answer = answer
    seen, watcher = Seen(), ConsulWatcher(client, "zone-a", rng=random.Random(1), zones=(), timing=QUICK)
    async with running(watcher.run(seen.publish)):
        await seen.until_state(CatalogState.PASSING)
        assert set(seen.zone().entries) == {"server-1"}
