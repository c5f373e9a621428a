"""stoker.v1.ModelService of one server: what is there, and bringing it nearer or farther."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import grpc

from discovery.endpoint import Endpoint, Residency
from discovery.messages import model_to_proto, residency_to_proto
from model_server.parts import duration
from model_server.residency.held import Held
from model_server.residency.models import Models
from stoker.v1 import endpoint_pb2, model_pb2
from stoker_common.refusal import Code, Refusal, deadline_exceeded, invalid, not_found
from stoker_common.wire import Context, service, unary_stream, unary_unary

MODELS = "stoker.v1.ModelService"


class ModelService:
    """The service of this server."""

    def __init__(self, endpoint: Callable[[], Endpoint], models: Models) -> None:
        self._endpoint = endpoint
        self._models = models

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's methods."""
        return service(
            MODELS,
            {
                "ListModels": unary_unary(self._list, model_pb2.ListModelsRequest),
                "SleepModel": unary_unary(self._sleep, model_pb2.SleepModelRequest),
                "UnloadModel": unary_unary(self._unload, model_pb2.UnloadModelRequest),
                "LoadModel": unary_stream(self._load, model_pb2.LoadModelRequest),
                "WakeModel": unary_stream(self._wake, model_pb2.WakeModelRequest),
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

    async def _sleep(self, request: model_pb2.SleepModelRequest, _: Context) -> model_pb2.SleepModelResponse:
        held = self._held(request.target)
        await self._models.put_away(held, Residency.ASLEEP, _grace_s(request))
        return model_pb2.SleepModelResponse(model=model_to_proto(self._models.state(held)))

    async def _unload(self, request: model_pb2.UnloadModelRequest, _: Context) -> model_pb2.UnloadModelResponse:
        held = self._held(request.target)
        await self._models.put_away(held, Residency.STAGED, _grace_s(request))
        return model_pb2.UnloadModelResponse(model=model_to_proto(self._models.state(held)))

    async def _load(
        self, request: model_pb2.LoadModelRequest, context: Context
    ) -> AsyncGenerator[model_pb2.LoadModelResponse, None]:
        async with aclosing(self._ready(self._held(request.target), context)) as news:
            async for progress in news:
                yield model_pb2.LoadModelResponse(progress=progress)

    async def _wake(
        self, request: model_pb2.WakeModelRequest, context: Context
    ) -> AsyncGenerator[model_pb2.WakeModelResponse, None]:
        held = self._held(request.target)
        if held.residency not in (Residency.ASLEEP, Residency.HOT):
            text = f"the model {held.name!r} does not sleep, it is {held.residency.value}; load it (LoadModel)"
            raise Refusal(Code.FAILED_PRECONDITION, text, reason="MODEL_NOT_ASLEEP")
        async with aclosing(self._ready(held, context)) as news:
            async for progress in news:
                yield model_pb2.WakeModelResponse(progress=progress)

    async def _ready(self, held: Held, context: Context) -> AsyncGenerator[model_pb2.ModelProgress, None]:
        """How far the model is, until it is hot."""
        server = self._endpoint().server
        if not held.hot:
            self._models.asked(held)
        while not held.hot:
            async with aclosing(self._models.ready(held).follow()) as news:
                async for progress in news:
                    # Nobody else watches the deadline of a call that only waits.
                    # The stubs say float, and it is None without a deadline.
                    left_s: float | None = context.time_remaining()
                    if left_s is not None and left_s <= 0:
                        raise deadline_exceeded("the model is still being readied; that goes on without this call")
                    told = model_pb2.ModelProgress(
                        server=server,
                        residency=residency_to_proto(held.residency),
                        activity=progress.activity,
                        fraction=progress.fraction,
                    )
                    if progress.remaining_s is not None:
                        told.remaining.CopyFrom(duration(progress.remaining_s))
                    yield told
        yield model_pb2.ModelProgress(
            server=server, residency=endpoint_pb2.RESIDENCY_HOT, activity="ready", fraction=1.0
        )

    def _held(self, target: model_pb2.ModelTarget) -> Held:
        endpoint = self._endpoint()
        if target.server not in ("", endpoint.server):
            raise not_found(f"this is {endpoint.server}, not {target.server!r}; ask a router", field="target.server")
        if not target.model:
            raise invalid("target.model", "is missing; say which model")
        return self._models.find(target.model, "target.model")


def _grace_s(request: model_pb2.SleepModelRequest | model_pb2.UnloadModelRequest) -> float | None:
    if not request.HasField("grace"):
        return None
    grace_s = request.grace.ToNanoseconds() / 1e9
    if grace_s < 0:
        raise invalid("grace", f"is {grace_s:g} s; give 0 or more")
    return grace_s
