"""One suite for the three ways an answer comes: through a router, from the server itself, or whichever works."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Literal

import pytest

from discovery.memory import MemoryCatalog
from router.client_link import ClientLink
from stoker.v1 import inference_pb2
from stoker_client import Client, Code, StokerError
from stoker_common.link.served import Ask
from tests.fakes.fleet import MODEL
from tests.fakes.mesh import Mesh, mesh
from tests.fakes.until import until
from tests.integration.stoker_client.test_resume import SLOW, Answer, Asked, ask, assert_same, both, unfaulted

pytestmark = pytest.mark.integration

Way = Literal["auto", "direct", "relay"]
KEY = "a key of the mesh that nobody may read"
modes = pytest.mark.parametrize("mode", ["relay", "direct", "auto"])


def kinds() -> list[Asked]:
    """Some of every kind that the simulator takes."""
    plain: list[Asked] = [(f"plain {i} " * (i + 1), {"max_tokens": 80}) for i in range(6)]
    seeded: list[Asked] = [(f"seeded {i}", {"max_tokens": 80, "seed": i, "temperature": 0.8}) for i in range(4)]
    several: list[Asked] = [("three", {"max_tokens": 60, "n": 3, "seed": 1})]
    logprobs: list[Asked] = [("logprobs", {"max_tokens": 70, "logprobs": 2})]
    penalties: list[Asked] = [("penalties", {"max_tokens": 70, "frequency_penalty": 1.0, "min_tokens": 40})]
    return plain + seeded + several + logprobs + penalties


async def answers(client: Client, asked: Sequence[Asked]) -> list[Answer]:
    return list(await asyncio.gather(*(ask(client, each, streamed=i % 3 > 0) for i, each in enumerate(asked))))


def tokens_relayed(up: Mesh) -> bool:
    """Whether a router has a stream of a client's of its own to pass on."""
    return any(router.registry.get_sample_value("stoker_router_in_flight") for router in up.routers.values())


async def all_run(up: Mesh, asked: Sequence[Asked]) -> None:
    """Wait until all that was asked for runs, each of several outputs too, and has for some steps."""
    outputs = sum(options.get("n", 1) for _, options in asked)
    await until(lambda: sum(each.engine.load().running for each in up.servers) >= outputs, within_s=10)
    steps = [each.engine.load().steps for each in up.servers]
    await until(
        lambda: all(
            each.engine.load().steps > then + 10 or not len(each.server.in_flight)
            for each, then in zip(up.servers, steps, strict=True)
        ),
        within_s=10,
    )


def assert_resumed(found: Sequence[Answer], expected: Sequence[Answer], lost: str) -> None:
    for answer, wanted in zip(found, expected, strict=True):
        assert_same(answer, wanted)
    moved = [answer for answer in found if len(answer.finished.attempts) > 1]
    assert moved, f"nothing ran on {lost}"
    for answer in moved:
        first, *_, last = answer.finished.attempts
        assert (first.server, bool(first.code), last.code) == (lost, True, 0)
        assert sum(each.tokens for each in answer.finished.attempts) == answer.finished.usage.completion_tokens
        assert answer.finished.exactness == inference_pb2.EXACTNESS_BYTES_EXACT


@modes
@pytest.mark.parametrize("ticket_key", ["", KEY], ids=["no key", "key"])
async def test_answers_are_the_same(mode: Way, ticket_key: str) -> None:
    asked = kinds()
    expected = await unfaulted(asked, SLOW)
    async with mesh(2, sim=SLOW, ticket_key=ticket_key) as up, Client(both(up), mode=mode) as client:
        asking = asyncio.ensure_future(answers(client, asked))
        await all_run(up, asked)
        assert tokens_relayed(up) == (mode == "relay")
        for answer, wanted in zip(await asking, expected, strict=True):
            assert_same(answer, wanted)
            assert answer.started.HasField("pick")
            assert [each.code for each in answer.finished.attempts] == [0]
        await until(up.idle)
        assert not any(len(router.reservations) for router in up.routers.values())


async def test_a_client_that_asks_often_asks_over_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_by_link: list[str] = []
    route = ClientLink._route

    async def counted(link: ClientLink, ask: Ask) -> None:
        asked_by_link.append(ask.request.generation.text)
        await route(link, ask)

    monkeypatch.setattr(ClientLink, "_route", counted)
    async with mesh(2, sim=SLOW, ticket_key=KEY) as up, Client(up.address, mode="direct") as client:
        links = up.routers["zone-a"].client_links
        await ask(client, ("first", {"max_tokens": 2}), streamed=True)
        assert links.attached == 0, "a question now and then is not worth a link"
        await ask(client, ("second", {"max_tokens": 2}), streamed=True)
        await until(lambda: links.attached == 1)
        asked = kinds()
        await answers(client, asked)
        assert sorted(asked_by_link) == sorted(prompt for prompt, _ in asked)
        await until(up.idle)
        assert not len(up.routers["zone-a"].reservations)


@modes
@pytest.mark.parametrize("how", ["engine dies", "leaves at once", "maintenance"])
async def test_a_server_that_goes_is_replaced(mode: Way, how: str) -> None:
    asked = kinds()
    expected = await unfaulted(asked, SLOW)
    catalog = MemoryCatalog(("zone-a",))
    async with mesh(2, catalog=catalog, sim=SLOW, ticket_key=KEY) as up, Client(up.address, mode=mode) as client:
        asking = asyncio.ensure_future(answers(client, asked))
        await all_run(up, asked)
        victim = up.server("zone-a-0")
        if how == "engine dies":
            victim.engine.faults.inject(dead=True)
        elif how == "leaves at once":
            victim.server.stop()
            victim.server.stop()
        else:
            catalog.maintain("zone-a", "zone-a-0", on=True)
        assert_resumed(await asking, expected, "zone-a-0")
        await until(up.idle)
        assert not len(up.routers["zone-a"].reservations)


@modes
async def test_a_stalled_engines_streams_go_on_elsewhere(mode: Way) -> None:
    asked = kinds()[:4]
    expected = await unfaulted(asked, SLOW)
    async with mesh(2, zones=("zone-a",), sim=SLOW) as up, Client(up.address, mode=mode) as client:
        asking = asyncio.ensure_future(answers(client, asked))
        await all_run(up, asked)
        up.server("zone-a-0").engine.faults.inject(stall=True)
        assert_resumed(await asking, expected, "zone-a-0")
        up.server("zone-a-0").engine.faults.inject(stall=False)


@modes
async def test_a_router_that_goes_takes_nothing_along(mode: Way) -> None:
    asked = kinds()
    expected = await unfaulted(asked, SLOW)
    async with mesh(2, sim=SLOW, drain_seconds=0.0) as up, Client(both(up), mode=mode) as client:
        asking = asyncio.ensure_future(answers(client, asked))
        await all_run(up, asked)
        up.routers["zone-a"].stop()
        found = await asking
        for answer, wanted in zip(found, expected, strict=True):
            assert_same(answer, wanted)
            # Off the path of tokens, its end is nobody's business.
            assert (len(answer.finished.attempts) > 1) == (mode == "relay")


@modes
async def test_router_and_server_go_at_once(mode: Way) -> None:
    asked = kinds()
    expected = await unfaulted(asked, SLOW)
    async with mesh(2, sim=SLOW, drain_seconds=0.0) as up, Client(both(up), mode=mode) as client:
        asking = asyncio.ensure_future(answers(client, asked))
        await all_run(up, asked)
        up.routers["zone-a"].stop()
        up.server("zone-a-0").engine.faults.inject(dead=True)
        for answer, wanted in zip(await asking, expected, strict=True):
            assert_same(answer, wanted)


@modes
async def test_who_wants_to_know_of_a_failure_is_told(mode: Way) -> None:
    async with mesh(2, zones=("zone-a",), sim=SLOW) as up, Client(up.address, mode=mode) as client:
        with pytest.raises(StokerError) as raised:
            async for chunk in client.stream("fail please", model=MODEL, max_tokens=400, on_server_failure="fail"):
                if chunk.deltas:
                    for server in up.servers:
                        if len(server.server.in_flight):
                            server.engine.faults.inject(dead=True)
        assert raised.value.code is Code.UNAVAILABLE
        await until(up.idle)


@modes
async def test_mistakes_and_deadlines_are_told_alike(mode: Way) -> None:
    async with mesh(1, zones=("zone-a",), sim=SLOW) as up, Client(up.address, mode=mode) as client:
        with pytest.raises(StokerError) as mistaken:
            await client.generate("x", model=MODEL, max_tokens=-1)
        assert mistaken.value.field == "generation.sampling.max_tokens"
        with pytest.raises(StokerError) as unknown:
            await client.generate("x", model="nobody's")
        assert unknown.value.reason == "MODEL_NOT_FOUND"
        with pytest.raises(StokerError) as late:
            await client.generate("x", model=MODEL, max_tokens=4000, timeout_s=0.5)
        assert late.value.code is Code.DEADLINE_EXCEEDED
        await until(up.idle)
        assert not len(up.routers["zone-a"].reservations)


@modes
async def test_leaving_frees_the_engine_and_the_reservation(mode: Way) -> None:
    async with mesh(1, zones=("zone-a",), sim=SLOW) as up, Client(up.address, mode=mode) as client:
        async with client.stream("left", model=MODEL, max_tokens=4000) as stream:
            async for chunk in stream:
                if chunk.deltas:
                    break
        await until(up.idle, within_s=2.0)
        assert not len(up.routers["zone-a"].reservations)


async def test_auto_relays_where_servers_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller does not notice, and the next requests do not try."""
    async with mesh(1, zones=("zone-a",), sim=SLOW) as up, Client(up.address, mode="auto") as client:
        tried: list[str] = []

        async def unreachable(address: str, within_s: float | None) -> None:
            tried.append(address)

        monkeypatch.setattr(client._servers, "connected", unreachable)
        for _ in range(5):
            answer = await client.generate("x", model=MODEL, max_tokens=5)
            assert len(answer.token_ids) == 5
        assert len(tried) == 1
        router = up.routers["zone-a"]
        assert not len(router.reservations)
        assert router.registry.get_sample_value("stoker_router_reservations_ended_total", {"how": "released"}) == 1
        # It says nothing of the server.
        assert (await client.status()).zones[0].endpoints[0].excluded_by == ""
        await until(up.idle)


async def test_direct_says_where_it_cannot_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh(1, zones=("zone-a",), hold_s=0.1) as up, Client(up.address, mode="direct") as client:

        async def unreachable(address: str, within_s: float | None) -> None: ...

        monkeypatch.setattr(client._servers, "connected", unreachable)
        with pytest.raises(StokerError) as raised:
            await client.generate("x", model=MODEL, max_tokens=5)
        assert raised.value.code is Code.UNAVAILABLE
        await until(lambda: not len(up.routers["zone-a"].reservations), within_s=12)


@modes
async def test_the_command_has_them_too(mode: Way) -> None:
    async with mesh(1, zones=("zone-a",), ticket_key=KEY) as up:
        argv = ("-m", "stoker_client", "generate", "a prompt", "--max-tokens", "20", "--router", up.address)
        process = await asyncio.create_subprocess_exec(
            sys.executable, *argv, "--mode", mode, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        text, said = await process.communicate()
        assert process.returncode == 0, said
        assert text.strip() and b"20 out" in said and b"picked for" in said
        ended = up.routers["zone-a"].registry.get_sample_value("stoker_router_reservations_ended_total", {"how": "ok"})
        assert ended == (None if mode == "relay" else 1)
