"""What servers have cached decides where requests go: real routers, links and gRPC, simulated engines."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from model_server.engines.sim_settings import SimSettings
from router.server import RouterServer
from stoker.v1 import generation_pb2, inference_pb2, router_pb2, router_pb2_grpc
from stoker_common import prefix
from tests.fakes.fleet import FAST
from tests.fakes.inference import channel_to, generation, stream, unary
from tests.fakes.mesh import Mesh, mesh, router
from tests.fakes.until import until

pytestmark = pytest.mark.integration

ZONE = ("zone-a",)
# Slow enough that what is cached decides, and not chance.
PREFILL = FAST.model_copy(update={"prefill_tokens_per_second": 20_000.0, "max_model_tokens": 32_768})
ONE_AT_A_TIME = SimSettings(load_ms=0.0, step_base_ms=5.0, max_streams=1, max_batched_tokens=2048)
TEXT = "the boilers are hot and the lamps are lit; "


def turn(*said: str, session: str = "", salt: str = "", max_tokens: int = 20) -> generation_pb2.Generation:
    """A conversation in which user and assistant take turns."""
    messages = [
        generation_pb2.ChatMessage(
            role="assistant" if place % 2 else "user", content=[generation_pb2.ContentPart(text=text)]
        )
        for place, text in enumerate(said)
    ]
    asked = generation(max_tokens=max_tokens)
    asked.chat.messages.extend(messages)
    asked.cache_salt = salt
    if session:
        asked.session.id = session
    return asked


async def ready(up: Mesh, *routers: RouterServer) -> None:
    """Until every router knows what every server has cached."""
    keys = [(each.server.endpoint().server, each.server.endpoint().epoch) for each in up.servers]
    for each in routers or up.routers.values():
        index = each.learned.caches.index
        await until(lambda index=index: all(key in index for key in keys))  # type: ignore[misc]


def hard(asked: generation_pb2.Generation) -> generation_pb2.Generation:
    asked.session.mode = generation_pb2.SESSION_MODE_HARD
    return asked


async def test_a_prompt_goes_where_its_beginning_is_cached_and_the_router_knows_how_much_of_it() -> None:
    async with mesh(4, zones=ZONE, sim=PREFILL) as up, channel_to(up.address) as channel:
        await ready(up)
        first = await unary(channel, generation(TEXT * 200, max_tokens=2))
        for question in ("who?", "when?", "where?"):
            answer = await unary(channel, generation(TEXT * 200 + question, max_tokens=2))
            assert answer.started.server == first.started.server
            pick, started = answer.started.pick, answer.started
            assert pick.reason == "cached prefix"
            assert started.cached_tokens > 0.9 * started.prompt_tokens
            # In tokens as the router estimates them, until it has learned how long they are.
            assert 0.8 < pick.cached_tokens / started.cached_tokens < 1.2
        found = up.routers["zone-a"].registry.get_sample_value
        labels = {"model": first.started.model}
        counts = {
            kind: found("stoker_router_cached_tokens_total", {**labels, "kind": kind}) or 0.0
            for kind in ("prompt", "expected", "found", "off")
        }
        assert 0.6 * counts["prompt"] < counts["found"] < counts["prompt"]
        assert counts["off"] < 0.05 * counts["prompt"]


async def test_explain_shows_what_each_server_has_of_the_prompt() -> None:
    async with mesh(3, zones=ZONE, sim=PREFILL) as up, channel_to(up.address) as channel:
        await ready(up)
        asked = generation(TEXT * 100, max_tokens=2)
        first = await unary(channel, asked)
        response: router_pb2.ExplainResponse = await router_pb2_grpc.RouterServiceStub(channel).Explain(
            router_pb2.ExplainRequest(generation=asked)
        )
        held = {candidate.server: candidate.cached_tokens for candidate in response.candidates}
        assert held.pop(first.started.server) > 0.9 * response.prompt_tokens
        assert set(held.values()) == {0}
        assert response.chosen == first.started.server


async def test_another_salt_finds_nothing() -> None:
    async with mesh(2, zones=ZONE, sim=PREFILL) as up, channel_to(up.address) as channel:
        await ready(up)
        asked = generation(TEXT * 100, max_tokens=2)
        asked.cache_salt = "ann"
        await unary(channel, asked)
        asked.cache_salt = "bob"
        answer = await unary(channel, asked)
        assert answer.started.pick.cached_tokens == answer.started.cached_tokens == 0


async def test_a_next_turn_is_cached_with_the_answer_before() -> None:
    async with mesh(4, zones=ZONE, sim=PREFILL) as up, channel_to(up.address) as channel:
        await ready(up)
        said = [TEXT * 100]
        servers = set()
        for _ in range(4):
            answer = await unary(channel, turn(*said, max_tokens=300))
            servers.add(answer.started.server)
            if len(said) > 1:
                assert answer.started.pick.reason == "cached prefix"
                assert answer.started.cached_tokens > 0.95 * (answer.started.prompt_tokens - 10)
            said += [answer.outputs[0].text, "and then?"]
        assert len(servers) == 1


@asynccontextmanager
async def running(
    channel: grpc.aio.Channel, asked: generation_pb2.Generation
) -> AsyncIterator[inference_pb2.GenerateStreamResponse]:
    """A stream under way for as long as the block lasts: its first part."""
    call = stream(channel, asked)
    try:
        first = await call.read()
        assert isinstance(first, inference_pb2.GenerateStreamResponse)
        yield first
    finally:
        call.cancel()


async def next_turns(
    channel: grpc.aio.Channel, said: Sequence[list[str]], sessions: Sequence[int]
) -> tuple[int, int, int]:
    """One more turn of these conversations: tokens of prompts, those cached, those the router expected so."""
    prompt = cached = expected = 0
    for session in sessions:
        answer = await unary(channel, turn(*said[session]))
        said[session] += [answer.outputs[0].text, f"and then, {session}?"]
        prompt += answer.started.prompt_tokens
        cached += answer.started.cached_tokens
        expected += answer.started.pick.cached_tokens
    return prompt, cached, expected


async def test_a_restarted_router_routes_like_the_others_as_soon_as_its_links_are_up() -> None:
    async with mesh(4, zones=ZONE, sim=PREFILL) as up, channel_to(up.address) as channel:
        await ready(up)
        said = [[f"{session}: " + TEXT * 40] for session in range(200)]
        await asyncio.gather(*(next_turns(channel, said, range(part, 200, 8)) for part in range(8)))
        async with router(up.catalog, "zone-a") as fresh, channel_to(f"127.0.0.1:{fresh.port}") as anew:
            await ready(up, fresh)
            # The first 100 requests of the one, and 100 more of the other.
            prompt, cached, expected = await next_turns(anew, said, range(0, 200, 2))
            old_prompt, old_cached, _ = await next_turns(channel, said, range(1, 200, 2))
            assert cached / prompt > 0.9
            assert abs(cached / prompt - old_cached / old_prompt) < 0.02
            assert abs(expected - cached) < 0.1 * prompt


async def test_a_hard_session_waits_for_its_server_and_others_pass_it_by() -> None:
    async with mesh(2, zones=ZONE, sim=ONE_AT_A_TIME, waiting_per_server=0) as up, channel_to(up.address) as channel:
        await ready(up)
        home = (await unary(channel, turn("hello", session="s"))).started.server
        async with running(channel, hard(turn("hello", session="s", max_tokens=2000))) as first:
            assert first.started.server == home
            waiting = asyncio.ensure_future(unary(channel, hard(turn("hello", session="s", max_tokens=1))))
            await until(lambda: up.routers["zone-a"].admission.queues() != {})
            assert (await unary(channel, generation(max_tokens=1))).started.server != home
            assert not waiting.done()
        answer = await waiting
        assert answer.started.server == home
        assert answer.started.pick.reason == "session's server"
        await until(up.idle)


async def test_a_hard_session_waits_no_longer_than_its_deadline() -> None:
    async with mesh(2, zones=ZONE, sim=ONE_AT_A_TIME, waiting_per_server=0) as up, channel_to(up.address) as channel:
        await ready(up)
        await unary(channel, turn("hello", session="s"))
        async with running(channel, hard(turn("hello", session="s", max_tokens=4000))):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await unary(channel, hard(turn("hello", session="s", max_tokens=1)), timeout=0.3)
            # Or it is refused at once, where what was served before took so long that this would be too late.
            late = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert caught.value.code() in late
        await until(up.idle)


async def test_a_session_moves_as_a_whole_when_its_server_drains() -> None:
    async with (
        mesh(4, zones=ZONE, sim=PREFILL) as up,
        router(up.catalog, "zone-a") as second,
        channel_to(up.address) as channel,
        channel_to(f"127.0.0.1:{second.port}") as other,
    ):
        await ready(up, second, *up.routers.values())
        home = (await unary(channel, hard(turn("hello", session="s")))).started.server
        up.server(home).server.stop()
        await until(lambda: all(home not in holders(each) for each in (second, *up.routers.values())))
        ways = (channel, other, channel, other)
        answers = [await unary(way, hard(turn("hello", session="s"))) for way in ways]
        assert {answer.started.server for answer in answers} == {answers[0].started.server} != {home}


def holders(of: RouterServer) -> set[str]:
    return {server for every in of.fleet.snapshot.holders.values() for server, _ in every.by_key}


async def test_a_model_that_leaves_memory_takes_its_cache_along() -> None:
    async with mesh(1, zones=ZONE, sim=PREFILL) as up, channel_to(up.address) as channel:
        await ready(up)
        asked = generation(TEXT * 100, max_tokens=2)
        await unary(channel, asked)
        index = up.routers["zone-a"].learned.caches.index
        chain = prefix.of(asked, asked.model).hashes
        assert dict(index.depths(chain))
        (held,) = up.servers[0].server.models
        await held.drop()
        await until(lambda: not dict(index.depths(chain)))
