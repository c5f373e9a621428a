"""`stoker.v1.ModelService` over all servers that the router sees: each call goes to one of them, named or chosen."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from discovery.endpoint import Residency
from discovery.messages import model_to_proto
from router.attempt import Transport
from router.fleet import Fleet
from router.ledger import NOTHING, Ledger
from router.report import Report
from router.snapshot import NOBODY, Holder
from stoker.v1 import endpoint_pb2, model_pb2
from stoker_common import wire
from stoker_common.refusal import Refusal, invalid, not_found, unavailable
from stoker_common.wire import Context


class ModelService:
    """The service of this router."""

    def __init__(self, report: Report, fleet: Fleet, ledger: Ledger, transport: Transport) -> None:
        self._report = report
        self._fleet = fleet
        self._ledger = ledger
        self._transport = transport

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for `server.add_generic_rpc_handlers`."""
        return wire.service(
            "stoker.v1.ModelService",
            {
                "ListModels": wire.unary_unary(self._list_models, model_pb2.ListModelsRequest),
                "LoadModel": wire.unary_stream(self._load_model, model_pb2.LoadModelRequest),
                "SleepModel": wire.unary_unary(self._sleep_model, model_pb2.SleepModelRequest),
                "WakeModel": wire.unary_stream(self._wake_model, model_pb2.WakeModelRequest),
                "UnloadModel": wire.unary_unary(self._unload_model, model_pb2.UnloadModelRequest),
            },
        )

    async def _list_models(self, request: model_pb2.ListModelsRequest, context: Context) -> wire.Response:
        return self._report.models(request.zone, request.model)

    async def _load_model(
        self, request: model_pb2.LoadModelRequest, context: Context
    ) -> AsyncGenerator[wire.Response, None]:
        holders = self._holders(request.target)
        async with aclosing(self._ready(self._nearest(holders), request.target.model)) as news:
            async for progress in news:
                yield model_pb2.LoadModelResponse(progress=progress)

    async def _wake_model(
        self, request: model_pb2.WakeModelRequest, context: Context
    ) -> AsyncGenerator[wire.Response, None]:
        near = (Residency.HOT, Residency.ASLEEP)
        holders = [holder for holder in self._holders(request.target) if holder.model.residency in near]
        if not holders:
            text = f"{request.target.model!r} sleeps nowhere; load it (LoadModel)"
            raise not_found(text, field="target.model", reason="MODEL_NOT_ASLEEP")
        async with aclosing(self._ready(self._nearest(holders), request.target.model)) as news:
            async for progress in news:
                yield model_pb2.WakeModelResponse(progress=progress)

    async def _sleep_model(self, request: model_pb2.SleepModelRequest, context: Context) -> wire.Response:
        grace_s = request.grace.ToNanoseconds() / 1e9 if request.HasField("grace") else None
        model = await self._put_away(request.target, Residency.ASLEEP, (Residency.HOT,), grace_s)
        return model_pb2.SleepModelResponse(model=model)

    async def _unload_model(self, request: model_pb2.UnloadModelRequest, context: Context) -> wire.Response:
        grace_s = request.grace.ToNanoseconds() / 1e9 if request.HasField("grace") else None
        in_memory = (Residency.HOT, Residency.ASLEEP)
        model = await self._put_away(request.target, Residency.STAGED, in_memory, grace_s)
        return model_pb2.UnloadModelResponse(model=model)

    async def _put_away(
        self,
        target: model_pb2.ModelTarget,
        to: Residency,
        of: tuple[Residency, ...],
        grace_s: float | None,
    ) -> endpoint_pb2.Model:
        holders = self._holders(target)
        holder = min((each for each in holders if each.model.residency in of), key=self._busy, default=None)
        if holder is None:  # It is where it is to be, or farther.
            return model_to_proto(holders[0].model)
        return await self._transport.put_away(holder.member.endpoint, target.model, to, grace_s)

    async def _ready(self, holder: Holder, model: str) -> AsyncGenerator[model_pb2.ModelProgress, None]:
        async with aclosing(self._transport.ready(holder.member.endpoint, model)) as news:
            async for progress in news:
                yield progress
        self._fleet.hot(holder.member.key, model)

    def _holders(self, target: model_pb2.ModelTarget) -> list[Holder]:
        """The servers that have the model, or the one that is named. Raises Refusal."""
        if not target.model:
            raise invalid("target.model", "is missing; say which model")
        snapshot = self._fleet.snapshot
        if target.model not in snapshot.models:
            known = ", ".join(sorted(snapshot.models)[:20]) or "none yet"
            text = f"no server has the model {target.model!r}; the models are: {known}"
            raise not_found(text, field="target.model", reason="MODEL_NOT_FOUND")
        holders = list(snapshot.holders.get(target.model, NOBODY).by_key.values())
        if target.server:
            holders = [holder for holder in holders if holder.member.endpoint.server == target.server]
            if not holders:
                text = f"{target.server!r} has no model {target.model!r}, or cannot be reached; see `stoker models`"
                raise not_found(text, field="target.server")
        if not holders:
            raise self._nobody(target.model)
        return holders

    def _nobody(self, model: str) -> Refusal:
        text = f"no server that has the model {model!r} can be reached now; see `stoker status`"
        return unavailable(text, reason="NO_ENDPOINT", retry_after_s=1.0)

    def _nearest(self, holders: list[Holder]) -> Holder:
        """Where it is ready soonest: hot, else the shortest time as measured; times nobody measured come last."""

        def ready_ms(holder: Holder) -> tuple[bool, float, float, str]:
            hot, known = holder.model.residency is Residency.HOT, holder.model.time_to_ready_ms
            far = not hot and not known
            return far, 0.0 if hot else known, self._busy(holder), holder.member.endpoint.server

        return min(holders, key=ready_ms)

    def _busy(self, holder: Holder) -> float:
        return self._ledger.accounts.get(holder.member.key, NOTHING).streams
