"""Our handlers in a real gRPC server: what callers get for good and bad requests, and what is left when they go."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from stoker.v1 import generation_pb2, inference_pb2, inference_pb2_grpc
from stoker_common import channel, wire
from stoker_common.refusal import Code, Refusal, exhausted, unavailable
from stoker_common.status import from_rpc_error

pytestmark = pytest.mark.integration

SERVICE = "stoker.v1.InferenceService"
GENERATE = f"/{SERVICE}/Generate"

# What a request says and no log may repeat.
SECRET = "my-secret"


class Inference:
    """Does what the prompt says, and keeps account of its streams."""

    def __init__(self) -> None:
        self.streams = 0
        self.address = ""
        self.ended = asyncio.Event()

    async def generate(self, request: inference_pb2.GenerateRequest, _: wire.Context) -> wire.Response:
        match request.generation.text:
            case "refuse":
                raise exhausted("the queue is full; come back later", reason="OVERLOADED", retry_after_s=2.5)
            case "refuse in a group":
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._refuse())
            case "fail":
                raise ValueError(request.generation.model)
            case "bytes":
                return inference_pb2.GenerateResponse(started=inference_pb2.Started(server="raw")).SerializeToString()
            case "wait":
                await asyncio.Event().wait()
        return inference_pb2.GenerateResponse(started=inference_pb2.Started(server="a"))

    async def generate_stream(
        self, request: inference_pb2.GenerateStreamRequest, _: wire.Context
    ) -> AsyncGenerator[wire.Response, None]:
        self.streams += 1
        try:
            for index in range(3):
                yield inference_pb2.GenerateStreamResponse(deltas=[inference_pb2.Delta(text=str(index))])
            match request.generation.text:
                case "refuse":
                    raise unavailable("the engine is dead; another server may do", reason="ENGINE_DEAD")
                case "fail":
                    raise KeyError(request.generation.model)
                case "wait":
                    await asyncio.Event().wait()
                case "flood":
                    while True:
                        yield inference_pb2.GenerateStreamResponse(deltas=[inference_pb2.Delta(text="x" * 10_000)])
        finally:
            self.streams -= 1
            self.ended.set()

    async def _refuse(self) -> None:
        raise exhausted("the queue is full; come back later", reason="OVERLOADED", retry_after_s=2.5)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Inference, grpc.aio.Channel]]:
    inference = Inference()
    server = grpc.aio.server(options=channel.server_options())
    handlers = {
        "Generate": wire.unary_unary(inference.generate, inference_pb2.GenerateRequest),
        "GenerateStream": wire.unary_stream(inference.generate_stream, inference_pb2.GenerateStreamRequest),
    }
    server.add_generic_rpc_handlers((wire.service(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    inference.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(inference.address, options=channel.client_options()) as client:
            yield inference, client
    finally:
        await server.stop(None)


def asking(text: str) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(generation=generation_pb2.Generation(model=SECRET, text=text))


def streaming(text: str) -> inference_pb2.GenerateStreamRequest:
    return inference_pb2.GenerateStreamRequest(generation=asking(text).generation)


def raw(client: grpc.aio.Channel, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return client.unary_unary(method)


async def refused(client: grpc.aio.Channel, data: bytes, timeout: float | None = 10) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw(client, GENERATE)(data, timeout=timeout)
    return from_rpc_error(caught.value)


@pytest.mark.parametrize(("text", "server"), [("hello", "a"), ("bytes", "raw")])
async def test_an_answer_may_be_a_message_or_bytes(text: str, server: str) -> None:
    async with serving() as (_, client):
        answer = await inference_pb2_grpc.InferenceServiceStub(client).Generate(asking(text))
        assert answer.started.server == server


@pytest.mark.parametrize("text", ["refuse", "refuse in a group"])
async def test_a_refusal_becomes_its_status(text: str) -> None:
    async with serving() as (_, client):
        refusal = await refused(client, asking(text).SerializeToString())
        assert (refusal.code, refusal.reason, refusal.retry_after_s) == (Code.RESOURCE_EXHAUSTED, "OVERLOADED", 2.5)


async def test_an_unforeseen_error_is_internal_with_an_id_that_the_log_has(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (_, client):
        with caplog.at_level(logging.ERROR):
            refusal = await refused(client, asking("fail").SerializeToString())
    assert refusal.code is Code.INTERNAL
    (record,) = [record for record in caplog.records if record.name == "stoker_common.wire"]
    assert record.__dict__["error_id"] in refusal.message
    assert "in generate" in record.__dict__["where"]
    assert "builtins.ValueError" in record.__dict__["where"]
    assert SECRET not in refusal.message + str(record.__dict__)


@pytest.mark.parametrize("data", [b"\xff\xfe\xfd", b"\x0a\x05abc", b"\x0a\x03\x12\x01\xff"])
async def test_bytes_that_are_no_request_are_an_invalid_argument(data: bytes) -> None:
    async with serving() as (_, client):
        refusal = await refused(client, data)
        assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "NOT_PARSEABLE")
        assert "the request is not a stoker.v1.GenerateRequest" in refusal.message


async def test_a_prompt_in_two_forms_is_an_invalid_argument() -> None:
    inner = b"\x12\x01a" + b"\x1a\x03\x0a\x01\x05"
    async with serving() as (_, client):
        refusal = await refused(client, b"\x0a" + bytes([len(inner)]) + inner)
        assert (refusal.code, refusal.field) == (Code.INVALID_ARGUMENT, "generation.prompt")


async def test_a_message_of_100_megabytes_is_refused_by_the_server_which_serves_on() -> None:
    async with serving() as (inference, _), grpc.aio.insecure_channel(inference.address) as unlimited:
        refusal = await refused(unlimited, bytes(100 << 20))
        assert refusal.code is Code.RESOURCE_EXHAUSTED
        assert "SERVER" in refusal.message
        assert (await inference_pb2_grpc.InferenceServiceStub(unlimited).Generate(asking("hi"))).started.server == "a"


async def test_a_message_of_100_megabytes_is_not_even_sent_by_our_own_clients() -> None:
    async with serving() as (_, client):
        refusal = await refused(client, bytes(100 << 20))
        assert refusal.code is Code.RESOURCE_EXHAUSTED
        assert "CLIENT" in refusal.message


@pytest.mark.parametrize("timeout", [-1.0, 0.0, 0.2])
async def test_a_deadline_that_passes_is_deadline_exceeded(timeout: float) -> None:
    async with serving() as (_, client):
        refusal = await refused(client, asking("wait").SerializeToString(), timeout)
        assert refusal.code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [("refuse", Code.UNAVAILABLE, "ENGINE_DEAD"), ("fail", Code.INTERNAL, "INTERNAL")],
)
async def test_a_stream_that_breaks_ends_with_its_status_after_what_it_sent(text: str, code: Code, reason: str) -> None:
    got: list[str] = []
    async with serving() as (inference, client):
        call = inference_pb2_grpc.InferenceServiceStub(client).GenerateStream(streaming(text))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for part in call:
                got.append(part.deltas[0].text)  # noqa: PERF401 - the parts before the error are what counts
        refusal = from_rpc_error(caught.value)
        assert (got, refusal.code, refusal.reason) == (["0", "1", "2"], code, reason)
        assert inference.streams == 0


@pytest.mark.parametrize("text", ["wait", "flood"])
async def test_a_cancelled_stream_is_closed_at_once_also_when_its_client_does_not_read(text: str) -> None:
    async with serving() as (inference, client):
        call = inference_pb2_grpc.InferenceServiceStub(client).GenerateStream(streaming(text))
        await call.read()
        assert inference.streams == 1
        call.cancel()
        async with asyncio.timeout(1):
            await inference.ended.wait()
        assert inference.streams == 0


async def test_a_method_that_does_not_exist_is_unimplemented() -> None:
    async with serving() as (_, client):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(client, f"/{SERVICE}/Nothing")(b"", timeout=10)
        assert from_rpc_error(caught.value).code is Code.UNIMPLEMENTED


async def test_two_servers_do_not_share_a_port_unless_told_to() -> None:
    first, second = (grpc.aio.server(options=channel.server_options()) for _ in range(2))
    port = first.add_insecure_port("127.0.0.1:0")
    with pytest.raises(RuntimeError, match=str(port)):
        second.add_insecure_port(f"127.0.0.1:{port}")
    shared = [grpc.aio.server(options=channel.server_options(share_port=True)) for _ in range(2)]
    port = shared[0].add_insecure_port("127.0.0.1:0")
    assert shared[1].add_insecure_port(f"127.0.0.1:{port}") == port
    for server in (first, second, *shared):
        await server.stop(None)
