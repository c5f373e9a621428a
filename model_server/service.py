"""The services of a model server: what arrives by gRPC, handed to those who know."""

from collections.abc import AsyncGenerator, Awaitable, Callable

import grpc
from google.protobuf.message import Message

from discovery.endpoint import Endpoint
from discovery.messages import model_to_proto
from model_server.generation import Generator, Write
from stoker.v1 import generation_pb2, inference_pb2, model_pb2
from stoker_common import tracing
from stoker_common.fold import Fold
from stoker_common.refusal import Code, Refusal, invalid
from stoker_common.wire import Context, guard, parse, service, unary_stream, unary_unary

INFERENCE = "stoker.v1.InferenceService"
MODELS = "stoker.v1.ModelService"


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
        fold = Fold()

        async def add(part: inference_pb2.GenerateStreamResponse) -> None:
            fold.add(part)

        await self._serve(request.generation, add, context)
        return fold.response()

    async def _stream(self, data: bytes, context: Context) -> None:
        # Not a generator: a deadline must find its own scope around every await, also that for a slow reader.
        async with guard(context, f"{INFERENCE}/GenerateStream"):
            request = parse(inference_pb2.GenerateStreamRequest, data)
            _require(request.HasField("generation"))
            send = context.write

            # Runs once a token: hands on gRPC's own awaitable instead of wrapping it in another coroutine.
            def write(part: inference_pb2.GenerateStreamResponse) -> Awaitable[None]:
                return send(part.SerializeToString())

            await self._serve(request.generation, write, context)

    async def _serve(self, generation: generation_pb2.Generation, write: Write, context: Context) -> None:
        # The stubs say float, and it is None without a deadline.
        remaining_s: float | None = context.time_remaining()
        parent = tracing.extract(context.invocation_metadata())
        await self._generator.serve(generation, write, remaining_s=remaining_s, parent=parent)


class ModelService:
    """stoker.v1.ModelService: one model, hot for as long as the server lives. Moving it comes later."""

    def __init__(self, endpoint: Callable[[], Endpoint]) -> None:
        self._endpoint = endpoint

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's methods."""
        return service(
            MODELS,
            {
                "ListModels": unary_unary(self._list, model_pb2.ListModelsRequest),
                "SleepModel": unary_unary(_refuse("SleepModel"), model_pb2.SleepModelRequest),
                "UnloadModel": unary_unary(_refuse("UnloadModel"), model_pb2.UnloadModelRequest),
                "LoadModel": unary_stream(_refuse_stream("LoadModel"), model_pb2.LoadModelRequest),
                "WakeModel": unary_stream(_refuse_stream("WakeModel"), model_pb2.WakeModelRequest),
            },
        )

    async def _list(self, request: model_pb2.ListModelsRequest, _: Context) -> model_pb2.ListModelsResponse:
        endpoint = self._endpoint()
        response = model_pb2.ListModelsResponse()
        if request.zone in ("", endpoint.zone):
            for model in endpoint.models:
                if request.model in ("", model.name):
                    response.models.add(server=endpoint.server, zone=endpoint.zone, model=model_to_proto(model))
        return response


def _require(has_generation: bool) -> None:
    if not has_generation:
        raise invalid("generation", "is missing; say what to generate")


def _refusal(method: str) -> Refusal:
    text = f"{method} is not implemented yet: this server serves the model it was started with; start another server"
    return Refusal(Code.UNIMPLEMENTED, text, reason="NOT_YET")


def _refuse(method: str) -> Callable[[Message, Context], Awaitable[bytes]]:
    async def refuse(_: Message, __: Context) -> bytes:
        raise _refusal(method)

    return refuse


def _refuse_stream(method: str) -> Callable[[Message, Context], AsyncGenerator[bytes, None]]:
    async def refuse(_: Message, __: Context) -> AsyncGenerator[bytes, None]:
        raise _refusal(method)
        yield b""  # Makes it a generator, as streaming methods are.

    return refuse
