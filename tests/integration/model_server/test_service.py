"""A server over real gRPC, with the simulated engine: answers, errors, cancels, deadlines."""

import asyncio
import random
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from model_server.engines.sim_settings import SimSettings
from stoker.v1 import inference_pb2
from stoker_common import tracing
from tests.fakes.fleet import MODEL, FleetServer, running_server, server_settings
from tests.fakes.inference import channel_to, error_details, generation, stream, token_ids, unary
from tests.fakes.until import until

pytestmark = pytest.mark.integration

SLOW = SimSettings(load_ms=0.0, step_base_ms=20.0)


def idle(member: FleetServer) -> bool:
    """Whether nothing is left of any request."""
    load = member.engine.load()
    return (
        len(member.server.in_flight) == 0
        and not member.server.models.meters.sequences
        and member.server.models.meters.waiting_prompt_tokens == 0
        and load.running == load.waiting == 0
    )


async def test_a_stream_tells_how_it_started_with_the_first_token_and_how_it_ended_with_the_last() -> None:
    async with running_server() as member, channel_to(member.server.address) as channel:
        asked = generation(max_tokens=5)
        asked.request_id = "mine-1"
        parts = [part async for part in stream(channel, asked)]
        first, last = parts[0], parts[-1]
        assert first.started.request_id == "mine-1"
        assert (first.started.model, first.started.server) == (MODEL, member.server.endpoint().server)
        assert (first.started.zone, first.started.epoch) == ("zone-a", member.server.epoch)
        assert first.started.prompt_tokens == len(first.started.prompt_token_ids) > 0
        assert first.started.numerics_class == member.engine.info.numerics_class
        assert first.started.HasField("load") and first.deltas[0].token_ids
        assert last.finished.usage.completion_tokens == len(token_ids(parts)) == 5
        assert last.deltas[-1].finish_reason == inference_pb2.FINISH_REASON_LENGTH
        assert last.finished.timings.HasField("queue") and last.finished.timings.ttft.nanos > 0
        assert last.finished.timings.itl.nanos > 0
        assert not any(part.HasField("started") for part in parts[1:])
        assert not any(part.HasField("finished") for part in parts[:-1])
        assert idle(member)


async def test_generate_answers_what_the_stream_would_have_said() -> None:
    async with running_server() as member, channel_to(member.server.address) as channel:
        parts = [part async for part in stream(channel, generation(max_tokens=7))]
        whole = await unary(channel, generation(max_tokens=7))
        assert list(whole.outputs[0].token_ids) == token_ids(parts)
        assert whole.outputs[0].text == "".join(delta.text for part in parts for delta in part.deltas)
        assert whole.started.request_id and whole.finished.usage.completion_tokens == 7


async def test_three_outputs_come_interleaved_and_each_ends_once() -> None:
    async with running_server() as member, channel_to(member.server.address) as channel:
        parts = [part async for part in stream(channel, generation(max_tokens=6, n=3, seed=1, temperature=1.0))]
        ends = [delta.index for part in parts for delta in part.deltas if delta.finish_reason]
        assert sorted(ends) == [0, 1, 2]
        assert [len(token_ids(parts, index)) for index in range(3)] == [6, 6, 6]
        usage = parts[-1].finished.usage
        assert usage.completion_tokens == 18
        assert usage.prompt_tokens == parts[0].started.prompt_tokens
        assert idle(member)


async def test_a_cancelled_stream_is_off_the_engine_within_a_second() -> None:
    async with running_server(sim=SLOW) as member, channel_to(member.server.address) as channel:
        for n in (1, 3):
            call = stream(channel, generation(max_tokens=1000, n=n))
            await call.read()
            assert not idle(member)
            call.cancel()
            assert await until(lambda: idle(member)) < 1.0


async def test_a_client_that_vanishes_frees_the_engine_within_a_second() -> None:
    async with running_server(sim=SLOW) as member:
        async with channel_to(member.server.address) as channel:
            calls = [stream(channel, generation(f"number {i}", max_tokens=1000)) for i in range(10)]
            await asyncio.gather(*(call.read() for call in calls))
            assert len(member.server.in_flight) == 10
        assert await until(lambda: idle(member)) < 1.0


@pytest.mark.parametrize("n", [1, 3])
async def test_the_callers_deadline_ends_the_generation(n: int) -> None:
    async with running_server(sim=SLOW) as member, channel_to(member.server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in stream(channel, generation(max_tokens=1000, n=n), timeout=0.3):
                pass
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await until(lambda: idle(member)) < 1.0
        samples = member.server.metrics.registry
        outcome = {"model": MODEL, "outcome": "DEADLINE_EXCEEDED"}
        await until(lambda: samples.get_sample_value("stoker_server_requests_total", outcome) == 1.0)


async def test_random_bytes_are_refused_and_harm_nothing() -> None:
    rng = random.Random(7)
    async with running_server() as member, channel_to(member.server.address) as channel:
        for path in ("InferenceService/Generate", "InferenceService/GenerateStream", "ModelService/ListModels"):
            streams = path.endswith("Stream")
            method: Any = (channel.unary_stream if streams else channel.unary_unary)(f"/stoker.v1.{path}")
            for length in (1, 7, 100, 10_000):
                call = method(b"\xff" + rng.randbytes(length))
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    if streams:
                        async for _ in call:
                            pass
                    else:
                        await call
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await unary(channel, generation(max_tokens=1))).outputs
        assert idle(member)


async def test_what_cannot_be_served_is_refused_by_field() -> None:
    async with running_server() as member, channel_to(member.server.address) as channel:
        limit = member.engine.info.max_model_tokens
        too_long = generation(max_tokens=1)
        too_long.token_ids.ids.extend([5] * (limit + 1))
        foreign = generation(max_tokens=1)
        foreign.token_ids.ids.append(member.engine.info.vocabulary)
        cases = [
            (generation(model="other"), grpc.StatusCode.NOT_FOUND, "model"),
            (generation(max_tokens=0), grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
            (too_long, grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
            (foreign, grpc.StatusCode.INVALID_ARGUMENT, "ids"),
        ]
        for asked, code, named in cases:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await unary(channel, asked)
            assert refused.value.code() is code
            assert named in (refused.value.details() or "")
        outcome = {"model": "other", "outcome": "NOT_FOUND"}
        assert member.server.metrics.registry.get_sample_value("stoker_server_requests_total", outcome) == 1.0


async def test_beyond_its_queue_a_server_refuses_at_once_and_says_when_to_come_back() -> None:
    sim = SLOW.model_copy(update={"max_streams": 2})
    async with (
        running_server(server_settings(max_waiting=1), sim) as member,
        channel_to(member.server.address) as channel,
    ):
        calls = [stream(channel, generation(f"number {i}", max_tokens=200)) for i in range(3)]
        await until(lambda: len(member.server.in_flight) == 3)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await unary(channel, generation(max_tokens=1))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        reason, retry_s = error_details(refused.value)
        assert reason == "SERVER_OVERLOADED" and retry_s is not None and retry_s > 0.0
        for call in calls:
            call.cancel()
        await until(lambda: idle(member))
        assert (await unary(channel, generation(max_tokens=1))).outputs


async def test_two_hundred_streams_ended_and_cancelled_at_random_leave_nothing_behind() -> None:
    rng = random.Random(3)
    async with running_server() as member, channel_to(member.server.address) as channel:
        await unary(channel, generation(max_tokens=1))
        tasks_before = len(asyncio.all_tasks())

        async def one(i: int) -> bool:
            n = rng.choice((1, 1, 1, 3))
            call = stream(channel, generation(f"number {i}", max_tokens=rng.randint(1, 40), n=n))
            give_up_after = rng.choice((None, 1, 5))
            seen = 0
            try:
                finished = False
                async for part in call:
                    seen += 1
                    finished = part.HasField("finished")
                    if seen == give_up_after:
                        return True
                return finished
            finally:
                call.cancel()

        assert all(await asyncio.gather(*(one(i) for i in range(200))))
        await until(lambda: idle(member))
        await until(lambda: len(asyncio.all_tasks()) <= tasks_before)
        registry = member.server.metrics.registry
        assert registry.get_sample_value("stoker_server_in_flight") == 0.0
        ended = sum(
            sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if sample.name == "stoker_server_requests_total"
        )
        assert ended == 201.0


async def test_health_is_told_for_each_service() -> None:
    async with running_server() as member, channel_to(member.server.address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        for name in ("", "stoker.v1.InferenceService", "stoker.v1.ModelService"):
            answer = await check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await check(health_pb2.HealthCheckRequest(service="no.such.Service"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert member.server.port


async def test_the_callers_trace_goes_through_the_server_to_the_engine() -> None:
    exporter = InMemorySpanExporter()
    traces = tracing.configure("test", exporter=exporter)
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with running_server(traces=traces) as member, channel_to(member.server.address) as channel:
        metadata = (("traceparent", f"00-{trace_id}-{span_id}-01"),)
        await unary(channel, generation(max_tokens=3), metadata=metadata)
        await until(lambda: len(exporter.get_finished_spans()) == 2)
        spans = {span.name: span for span in exporter.get_finished_spans()}
        outer, inner = spans["server.generate"], spans["engine.generate"]
        assert outer.parent is not None and f"{outer.parent.span_id:016x}" == span_id
        assert f"{inner.context.trace_id:032x}" == f"{outer.context.trace_id:032x}" == trace_id
        assert inner.parent is not None and inner.parent.span_id == outer.context.span_id
        assert inner.attributes is not None and inner.attributes["stoker.completion_tokens"] == 3
        assert member.server.port


async def test_reflection_is_off_unless_switched_on() -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    for on in (False, True):
        async with (
            running_server(server_settings(reflection=on)) as member,
            channel_to(member.server.address) as channel,
        ):
            method: Any = channel.stream_stream(path)
            call = method()
            try:
                if on:
                    await call.write(b":\x01*")
                # Off: nothing is written, as grpc.aio ends a call that is refused before it is heard as INTERNAL.
                answer = await call.read()
                assert on and isinstance(answer, bytes) and b"stoker.v1.InferenceService" in answer
            except grpc.aio.AioRpcError as error:
                assert not on and error.code() is grpc.StatusCode.UNIMPLEMENTED
            finally:
                call.cancel()
