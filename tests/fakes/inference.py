"""What tests send to a server or a router, and how they call it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from stoker.v1 import generation_pb2, inference_pb2, inference_pb2_grpc
from stoker_common.channel import client_options
from stoker_common.status import from_rpc_error
from tests.fakes.fleet import MODEL


@asynccontextmanager
async def channel_to(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel, closed after the block."""
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        yield channel


def generation(text: str = "one two three", *, model: str = MODEL, **sampling: Any) -> generation_pb2.Generation:
    """A generation from text; `sampling` are fields of Sampling."""
    return generation_pb2.Generation(model=model, text=text, sampling=generation_pb2.Sampling(**sampling))


def stream(
    channel: grpc.aio.Channel, asked: generation_pb2.Generation, **call: Any
) -> "grpc.aio.UnaryStreamCall[Any, inference_pb2.GenerateStreamResponse]":
    """A call of GenerateStream, begun; `call` goes to the stub (timeout, metadata)."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    return stub.GenerateStream(inference_pb2.GenerateStreamRequest(generation=asked), **call)


async def rest(call: Any) -> list[inference_pb2.GenerateStreamResponse]:
    """What a stream of which something was read with `read()` still has. Raises AioRpcError as it does."""
    parts: list[inference_pb2.GenerateStreamResponse] = []
    while (part := await call.read()) is not grpc.aio.EOF:
        parts.append(part)
    return parts


async def unary(
    channel: grpc.aio.Channel, asked: generation_pb2.Generation, **call: Any
) -> inference_pb2.GenerateResponse:
    """Generate, answered."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    response: inference_pb2.GenerateResponse = await stub.Generate(
        inference_pb2.GenerateRequest(generation=asked), **call
    )
    return response


def token_ids(parts: Sequence[inference_pb2.GenerateStreamResponse], index: int = 0) -> list[int]:
    """The token ids of one output, from all parts."""
    return [token_id for part in parts for delta in part.deltas if delta.index == index for token_id in delta.token_ids]


def error_details(error: grpc.aio.AioRpcError) -> tuple[str, float | None]:
    """ErrorInfo's reason and RetryInfo's delay in seconds, as a client reads them."""
    refusal = from_rpc_error(error)
    return refusal.reason, refusal.retry_after_s
