"""Several streams of one client share a link to their router: real gRPC, simulated servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from discovery.memory import MemoryCatalog
from model_server.engines.sim_settings import SimSettings
from router.server import RouterServer
from stoker.v1 import generation_pb2, worker_link_pb2
from stoker_client import Client, Code, StokerError
from stoker_client.peer import LinkUse
from stoker_common import tracing
from stoker_common.channel import MAX_REQUEST_BYTES
from stoker_common.link.client import LinkRules
from stoker_common.status import from_rpc_error
from tests.fakes.fleet import FAST, MODEL, fleet
from tests.fakes.inference import channel_to
from tests.fakes.mesh import mesh, router
from tests.fakes.until import until
from tests.integration.stoker_client.fake_mesh import serving

pytestmark = pytest.mark.integration

SLOW = SimSettings(load_ms=0.0, step_base_ms=15.0, step_per_stream_ms=0.0)
# The stubs know no types of what a call brings.
Messages = Any


def attached(of: RouterServer) -> int:
    return of.client_links.attached


@asynccontextmanager
async def linked(client: Client, to: RouterServer) -> AsyncIterator[None]:
    """Two streams under way, so that there is a link for what comes in the block."""
    async with AsyncExitStack() as held:
        for i in range(2):
            stream = await held.enter_async_context(
                aclosing(client.stream(f"held {i}", model=MODEL, max_tokens=4000, ignore_eos=True))
            )
            await anext(stream)
        await until(lambda: attached(to) == 1)
        yield


async def texts(client: Client, count: int, **options: int) -> list[str]:
    asked = (client.generate(f"prompt {i}", model=MODEL, **options) for i in range(count))  # type: ignore[arg-type]
    return [answer.text for answer in await asyncio.gather(*asked)]


async def test_answers_over_a_link_are_what_calls_bring() -> None:
    async with mesh(2, zones=("zone-a",)) as up, Client(up.address) as one, Client(up.address) as many:
        expected = [(await one.generate(f"prompt {i}", model=MODEL, max_tokens=60)).text for i in range(30)]
        assert attached(up.routers["zone-a"]) == 0
        async with linked(many, up.routers["zone-a"]):
            assert await texts(many, 30, max_tokens=60) == expected
        assert await texts(many, 30, max_tokens=60) == expected
        assert attached(up.routers["zone-a"]) == 1
        await until(up.idle)


async def test_a_link_without_streams_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    use = LinkUse(idle_s=0.1)
    monkeypatch.setattr("stoker_client.client.LinkUse", lambda: use)
    async with mesh(1, zones=("zone-a",)) as up, Client(up.address) as client:
        for _ in range(2):
            async with linked(client, up.routers["zone-a"]):
                pass
            await until(lambda: attached(up.routers["zone-a"]) == 0)


async def test_what_one_step_brings_to_many_streams_is_one_message() -> None:
    async with mesh(1, zones=("zone-a",), sim=SLOW) as up, channel_to(up.address) as channel:
        call = await attach(channel)
        for stream_id in range(1, 33):
            asked = generation_pb2.Generation(model=MODEL, text=f"prompt {stream_id}")
            asked.sampling.max_tokens = 50
            start = worker_link_pb2.StartStream(stream_id=stream_id, generation=asked.SerializeToString())
            await call.write(worker_link_pb2.AttachRequest(start=start))
        steps, ended = 0, 0
        while ended < 32:
            response = await call.read()
            steps += response.HasField("step")
            ended += sum(output.last for output in response.step.outputs)
            assert not any(output.HasField("error") for output in response.step.outputs)
        # 32 streams of 50 tokens; those that did not begin with the same step do not end with it either.
        assert steps < 32 * 50 / 8
        call.cancel()


async def attach(channel: grpc.aio.Channel, version: int = 1) -> Messages:
    method = channel.stream_stream(
        "/stoker.v1.WorkerLinkService/Attach",
        request_serializer=worker_link_pb2.AttachRequest.SerializeToString,
        response_deserializer=worker_link_pb2.AttachResponse.FromString,
    )
    hello = worker_link_pb2.Hello(link_version=version, router="test", client=True)

    call: Messages = method()
    await call.write(worker_link_pb2.AttachRequest(hello=hello))
    return call


async def test_a_link_of_another_version_is_refused() -> None:
    async with mesh(1, zones=("zone-a",)) as up, channel_to(up.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (await attach(channel, version=0)).read()
        refusal = from_rpc_error(caught.value)
        assert (refusal.code, refusal.field) == (Code.INVALID_ARGUMENT, "hello.link_version")


async def test_refusals_are_typed() -> None:
    async with mesh(1, zones=("zone-a",)) as up, Client(up.address) as client:
        async with linked(client, up.routers["zone-a"]):
            with pytest.raises(StokerError) as mistaken:
                await client.generate("x", model=MODEL, max_tokens=-1)
            assert (mistaken.value.code, mistaken.value.field) == (
                Code.INVALID_ARGUMENT,
                "generation.sampling.max_tokens",
            )
            with pytest.raises(StokerError) as unknown:
                await client.generate("x", model="nobody's")
            assert (unknown.value.code, unknown.value.reason) == (Code.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_a_request_of_almost_the_largest_size_ends_no_link() -> None:
    async with mesh(1, zones=("zone-a",), sim=SLOW) as up, Client(up.address) as client:
        async with linked(client, up.routers["zone-a"]):
            asked = generation_pb2.Generation(model=MODEL, text="x")
            with pytest.raises(StokerError) as large:
                await client.generate("x" * (MAX_REQUEST_BYTES - asked.ByteSize() - 100), model=MODEL)
            # The server's answer: its context is shorter.
            assert large.value.code is Code.INVALID_ARGUMENT
            with pytest.raises(StokerError) as larger:
                await client.generate("x" * MAX_REQUEST_BYTES, model=MODEL)
            assert larger.value.code is Code.RESOURCE_EXHAUSTED
            assert len(up.servers[0].server.in_flight) == 2
            assert attached(up.routers["zone-a"]) == 1


async def test_leaving_a_stream_takes_it_off_the_engine_and_leaves_the_others_alone() -> None:
    async with mesh(1, zones=("zone-a",), sim=SLOW) as up, Client(up.address) as client:
        server = up.servers[0].server
        async with linked(client, up.routers["zone-a"]):
            async with client.stream("left", model=MODEL, max_tokens=4000) as stream:
                await anext(stream)
                assert len(server.in_flight) == 3
            await until(lambda: len(server.in_flight) == 2, within_s=1.0)
        await until(up.idle)


async def test_the_deadline_goes_along() -> None:
    async with mesh(1, zones=("zone-a",), sim=SLOW) as up, Client(up.address) as client:
        async with linked(client, up.routers["zone-a"]):
            with pytest.raises(StokerError) as late:
                await client.generate("x", model=MODEL, max_tokens=4000, timeout_s=0.3)
            assert late.value.code is Code.DEADLINE_EXCEEDED
            await until(lambda: len(up.servers[0].server.in_flight) == 2, within_s=1.0)


async def test_a_reader_that_stops_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    use = LinkUse(rules=LinkRules(stalled_s=None, stream_bytes=20_000))
    monkeypatch.setattr("stoker_client.client.LinkUse", lambda: use)
    async with mesh(1, zones=("zone-a",), sim=FAST) as up, Client(up.address) as client:
        async with linked(client, up.routers["zone-a"]):
            async with client.stream("slow", model=MODEL, max_tokens=3000, logprobs=5, ignore_eos=True) as slow:
                await anext(slow)
                assert len(await texts(client, 5, max_tokens=100)) == 5
                # Past its buffer it is ended, read or not, and its reader is told.
                await until(lambda: len(up.servers[0].server.in_flight) == 2, within_s=30.0)
                with pytest.raises(StokerError) as told:
                    async for _ in slow:
                        pass
                assert told.value.reason == "CLIENT_TOO_SLOW"


async def test_a_draining_router_lets_what_runs_on_a_link_end_and_then_leaves() -> None:
    async with mesh(1, zones=("zone-a", "zone-b"), sim=SLOW, drain_seconds=30.0) as up:
        addresses = [up.address_of("zone-a"), up.address_of("zone-b")]
        async with Client(addresses) as client:
            expected = await texts(client, 8, max_tokens=60)
            await until(lambda: attached(up.routers["zone-a"]) == 1)
            answers = asyncio.ensure_future(texts(client, 8, max_tokens=60))
            await until(lambda: sum(len(each.server.in_flight) for each in up.servers) == 8)
            up.routers["zone-a"].stop()
            later = await client.generate("prompt 3", model=MODEL, max_tokens=60)
            assert later.text == expected[3]
            assert await answers == expected
            # It does not wait for the client to let go.
            await until(lambda: attached(up.routers["zone-a"]) == 0, within_s=2.0)
            await until(up.idle)


async def test_what_begins_while_its_router_drains_does_not_wait_for_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    use = LinkUse(wait_s=20.0)
    monkeypatch.setattr("stoker_client.client.LinkUse", lambda: use)
    async with mesh(1, zones=("zone-a", "zone-b"), sim=SLOW, drain_seconds=30.0) as up:
        async with Client([up.address_of("zone-a"), up.address_of("zone-b")]) as client:
            async with linked(client, up.routers["zone-a"]):
                up.routers["zone-a"].stop()
                await until(lambda: not client._addresses._peers.at(up.address_of("zone-a")).linked)
                began_s = asyncio.get_running_loop().time()
                await client.generate("elsewhere", model=MODEL, max_tokens=3)
                assert asyncio.get_running_loop().time() - began_s < 10.0


async def test_a_router_that_knows_no_links_is_called() -> None:
    async with serving() as old, Client(old.address) as client:
        answers = await asyncio.gather(*(client.generate("x", model="m") for _ in range(20)))
        assert {answer.text for answer in answers} == {"Paris"}


async def test_traces_go_along() -> None:
    spans = InMemorySpanExporter()
    traces = tracing.configure("test", exporter=spans)
    catalog = MemoryCatalog(("zone-a",))
    async with fleet(catalog, 1, sim=FAST), router(catalog, "zone-a", traces) as up:
        await until(lambda: bool(up.fleet.snapshot.members))
        async with Client(f"127.0.0.1:{up.port}", tracer=traces.tracer) as client:
            async with linked(client, up):
                spans.clear()
                await client.generate("x", model=MODEL, max_tokens=3)
    named = {span.name: span for span in spans.get_finished_spans() if span.name in ("stoker.generate",)}
    routed = [span for span in spans.get_finished_spans() if span.name == "router.generate"]
    mine = named["stoker.generate"].get_span_context()
    assert mine is not None
    assert mine.trace_id in {span.get_span_context().trace_id for span in routed}  # type: ignore[union-attr]
