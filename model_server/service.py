"""Generations that arrive call by call, handed to the generator."""

import grpc

from model_server.generation import Generator
from model_server.out import Kept, Out, writing
from stoker.v1 import generation_pb2, inference_pb2
from stoker_common import tracing
from stoker_common.fold import folded
from stoker_common.refusal import invalid
from stoker_common.sink import Sink
from stoker_common.tickets import METADATA_KEY
from stoker_common.wire import Context, Guard, parse, service, unary_unary

INFERENCE = "stoker.v1.InferenceService"


class InferenceService:
    """stoker.v1.InferenceService: both methods are one generation, told in parts or at once."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's methods."""
        return service(
            INFERENCE,
            {
                "Generate": unary_unary(self._generate, inference_pb2.GenerateRequest),
                "GenerateStream": grpc.unary_stream_rpc_method_handler(self._stream),
            },
        )

    async def _generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> inference_pb2.GenerateResponse:
        _require(request.HasField("generation"))
        kept = Kept()
        await self._serve(request.generation, kept, context)
        return folded(kept.whole(), request.generation)

    async def _stream(self, data: bytes, context: Context) -> None:
        # Not a generator: a deadline must find its own scope around every await, also that for a slow reader.
        async with Guard(context, f"{INFERENCE}/GenerateStream"):
            request = parse(inference_pb2.GenerateStreamRequest, data)
            _require(request.HasField("generation"))
            # grpc's context can only be waited for; ours takes what has room at once.
            sink = context if isinstance(context, Sink) else None
            async with writing(context.write, sink) as out:
                await self._serve(request.generation, out, context)

    async def _serve(self, generation: generation_pb2.Generation, out: Out, context: Context) -> None:
        # The stubs say float, and it is None without a deadline.
        remaining_s: float | None = context.time_remaining()
        metadata = context.invocation_metadata() or ()
        parent = tracing.extract(metadata)
        ticket = next((value for key, value in metadata if key == METADATA_KEY and isinstance(value, bytes)), b"")
        await self._generator.serve(generation, out, remaining_s=remaining_s, parent=parent, ticket=ticket)


def _require(has_generation: bool) -> None:
    if not has_generation:
        raise invalid("generation", "is missing; say what to generate")
