"""The SDK against a router over real gRPC."""

import asyncio
import re
import socket
from collections.abc import Iterator
from functools import partial

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stoker.v1 import inference_pb2
from stoker_client import Client, StokerError
from stoker_client.mesh.readiness import until_true
from stoker_common import refusal, tracing
from stoker_common.refusal import Code
from tests.integration.stoker_client.fake_mesh import Part, delta, serving, started

pytestmark = pytest.mark.integration

ANSWER = [
    Part(progress=inference_pb2.Progress(server="s", activity="loading weights", fraction=0.5)),
    started("s"),
    delta("Pa", 1),
    delta("ris", 2, 3),
    Part(finished=inference_pb2.Finished(usage=inference_pb2.Usage(completion_tokens=3))),
]


@pytest.fixture
def silent() -> Iterator[str]:
    """An address at which nobody listens, and nobody can begin to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


async def test_generate() -> None:
    async with serving() as router, Client(router.address) as client:
        answer = await client.generate("The capital of France is", model="m", temperature=0.0)
        assert (answer.text, list(answer.token_ids), answer.finish_reason) == ("Paris", [1], "stop")
        assert answer.server == router.address
        assert router.requests[0].generation.text == "The capital of France is"


async def test_stream() -> None:
    async with serving(parts=ANSWER) as router, Client(router.address) as client:
        chunks = [chunk async for chunk in client.stream("x", model="m")]
    assert "".join(chunk.text for chunk in chunks) == "Paris"
    assert [token for chunk in chunks for token in chunk.token_ids] == [1, 2, 3]
    assert chunks[0].progress is not None and chunks[0].started is None
    assert chunks[1].started is not None and chunks[1].started.server == "s"
    assert chunks[-1].finished is not None and chunks[-1].finished.usage.completion_tokens == 3


async def test_status_models_and_explain() -> None:
    async with serving() as router, Client(router.address) as client:
        assert (await client.status(zone="zone-b")).zone == "zone-b"
        assert [found.model.name for found in await client.models()] == ["m"]
        assert (await client.explain("x", model="m")).chosen == "s1"


async def test_leaving_the_loop_cancels_the_call() -> None:
    async with serving(parts=ANSWER[:3], hang=True) as router, Client(router.address) as client:
        async for chunk in client.stream("x", model="m"):
            if chunk.text:
                break
        await asyncio.wait_for(router.cancelled.wait(), 5)


async def test_closing_a_stream_cancels_the_call() -> None:
    async with serving(parts=ANSWER[:3], hang=True) as router, Client(router.address) as client:
        async with client.stream("x", model="m") as stream:
            await anext(stream)
        await asyncio.wait_for(router.cancelled.wait(), 5)
        await stream.aclose()


@pytest.mark.parametrize("streamed", [False, True])
async def test_cancelling_the_task_cancels_the_call(streamed: bool) -> None:
    async with serving(parts=[], hang=True) as router, Client(router.address) as client:

        async def ask() -> None:
            if streamed:
                async for _ in client.stream("x", model="m"):
                    pass
            else:
                await client.generate("x", model="m")

        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(ask())
            await asyncio.wait_for(router.asked.wait(), 5)
            asking.cancel()
        assert asking.cancelled()
        await asyncio.wait_for(router.cancelled.wait(), 5)


async def test_a_refusal_keeps_all_it_says() -> None:
    refused = refusal.exhausted("too many", reason="OVERLOADED", field="generation.model", retry_after_s=1.5)
    async with serving(refusal=refused) as router, Client(router.address) as client:
        with pytest.raises(StokerError) as raised:
            await client.generate("x", model="m")
        error = raised.value
        assert (error.code, error.reason, error.field) == (Code.RESOURCE_EXHAUSTED, "OVERLOADED", "generation.model")
        assert error.retry_after_s == 1.5
        assert "too many" in error.message
        with pytest.raises(StokerError) as raised:
            async for _ in client.stream("x", model="m"):
                pass
        assert raised.value.code is Code.RESOURCE_EXHAUSTED


async def test_the_next_address_is_tried_when_the_first_is_silent(silent: str) -> None:
    async with serving() as router, Client([silent, router.address]) as client:
        assert (await client.generate("x", model="m")).server == router.address
        assert "".join([chunk.text async for chunk in client.stream("x", model="m")]) == "Paris"


async def test_the_next_address_is_tried_when_the_first_sees_no_server() -> None:
    async with serving(refusal=refusal.unavailable("no server")) as blind, serving() as router:
        async with Client([blind.address, router.address]) as client:
            assert (await client.generate("x", model="m")).server == router.address
            assert "".join([chunk.text async for chunk in client.stream("x", model="m")]) == "Paris"


async def test_other_refusals_are_not_taken_elsewhere() -> None:
    async with serving(refusal=refusal.invalid("generation.model", "wrong")) as strict, serving() as router:
        async with Client([strict.address, router.address]) as client:
            with pytest.raises(StokerError, match="wrong"):
                await client.generate("x", model="m")
        assert not router.requests


async def test_what_cannot_go_on_is_not_started_over() -> None:
    """The prompt's ids were not told: nobody else could go on from there."""
    async with serving(parts=ANSWER[:3], refusal=refusal.unavailable("died")) as dying, serving(parts=ANSWER) as router:
        async with Client([dying.address, router.address]) as client:
            with pytest.raises(StokerError, match="died") as raised:
                async for _ in client.stream("x", model="m"):
                    pass
        assert raised.value.reason == "NOT_RESUMABLE"
        assert not router.requests


async def test_nobody_there(silent: str) -> None:
    async with Client(silent) as client:
        with pytest.raises(StokerError, match="stoker up") as raised:
            await client.generate("x", model="m")
    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "UNREACHABLE")


async def test_a_restarted_router_is_found_again() -> None:
    async with serving() as router:
        port = int(router.address.rpartition(":")[2])
        client = Client(router.address)
        await client.status()
    async with client:
        with pytest.raises(StokerError):
            await client.status()
        async with serving(port), asyncio.timeout(5):
            await until_true(partial(answers, client))


async def answers(client: Client) -> bool:
    try:
        await client.status()
    except StokerError:
        return False
    return True


async def test_the_deadline_covers_all_addresses() -> None:
    async with serving(hang=True) as router, Client([router.address] * 2, timeout_s=0.2) as client:
        with pytest.raises(StokerError) as raised:
            await client.generate("x", model="m")
        assert raised.value.code is Code.DEADLINE_EXCEEDED
        assert len(router.requests) == 1


async def test_closing_the_client_ends_its_calls_with_an_error() -> None:
    async with serving(hang=True) as router:
        client = Client(router.address)
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(fails(client))
            await asyncio.wait_for(router.asked.wait(), 5)
            await client.close()
        assert asking.result() is Code.CANCELLED


async def fails(client: Client) -> Code:
    with pytest.raises(StokerError) as raised:
        await client.generate("x", model="m")
    return raised.value.code


async def test_the_trace_goes_along() -> None:
    spans = InMemorySpanExporter()
    traces = tracing.configure("test", exporter=spans)
    async with serving(parts=ANSWER) as router, Client(router.address, tracer=traces.tracer) as client:
        await client.generate("x", model="m")
        async for _ in client.stream("x", model="m"):
            pass
        sent = [re.fullmatch(r"00-(\w{32})-(\w{16})-\w\w", metadata["traceparent"]) for metadata in router.metadata]
    traces.shutdown()
    made = [(span.name, f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")
            for span in spans.get_finished_spans()]  # fmt: skip
    names = ("stoker.generate", "stoker.stream")
    assert made == [(name, match[1], match[2]) for name, match in zip(names, sent, strict=True) if match]
