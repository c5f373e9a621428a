"""The router's gRPC services. Thin: parse, ask the router, answer; refusals become statuses in `stoker_common.wire`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from router.entry import Entry
from router.report import Report
from stoker.v1 import generation_pb2, inference_pb2, router_pb2
from stoker_common import tracing, wire
from stoker_common.clock import Clock
from stoker_common.fold import folded
from stoker_common.sink import Sink
from stoker_common.validate import check_generation
from stoker_common.wire import Context


class InferenceService:
    """`stoker.v1.InferenceService`, relayed. Both methods take the same way; the unary one folds the parts."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for `server.add_generic_rpc_handlers`."""
        return wire.service(
            "stoker.v1.InferenceService",
            {
                "Generate": wire.unary_unary(self._generate, inference_pb2.GenerateRequest),
                "GenerateStream": wire.unary_stream(self._generate_stream, inference_pb2.GenerateStreamRequest),
            },
        )

    async def _generate(self, request: inference_pb2.GenerateRequest, context: Context) -> wire.Response:
        whole = _Whole()
        async with aclosing(self._parts(request.generation, context, whole)) as parts:
            async for data in parts:
                whole.put(data)
        return folded(whole.joined(), request.generation)

    async def _generate_stream(
        self, request: inference_pb2.GenerateStreamRequest, context: Context
    ) -> AsyncGenerator[wire.Response, None]:
        # grpc's context can only be waited for; ours takes what has room at once.
        sink = context if isinstance(context, Sink) else None
        async with aclosing(self._parts(request.generation, context, sink)) as parts:
            async for data in parts:
                yield data

    def _parts(
        self, generation: generation_pb2.Generation, context: Context, sink: Sink | None
    ) -> AsyncGenerator[bytes, None]:
        remaining_s: float | None = context.time_remaining()  # None without a deadline, whatever the stubs say
        return self._entry.generate(generation, remaining_s, tracing.extract(context.invocation_metadata()), sink)


class _Whole:
    """A `Sink` that keeps all parts of an answer for one response: nobody is woken for a token of it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def put(self, part: bytes) -> bool:
        """See `Sink`. There is always room: an answer is as long as it was asked for."""
        self._parts.append(part)
        return True

    def joined(self) -> bytes:
        """All of them: joined parts are one part (stoker_common/parts.py)."""
        return b"".join(self._parts)


class RouterService:
    """`stoker.v1.RouterService`."""

    def __init__(self, entry: Entry, report: Report, clock: Clock) -> None:
        self._entry = entry
        self._report = report
        self._clock = clock

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for `server.add_generic_rpc_handlers`."""
        return wire.service(
            "stoker.v1.RouterService",
            {
                "Route": wire.unary_unary(self._route, router_pb2.RouteRequest),
                "Release": wire.unary_unary(self._release, router_pb2.ReleaseRequest),
                "Explain": wire.unary_unary(self._explain, router_pb2.ExplainRequest),
                "Status": wire.unary_unary(self._status, router_pb2.StatusRequest),
            },
        )

    async def _route(self, request: router_pb2.RouteRequest, context: Context) -> wire.Response:
        remaining_s: float | None = context.time_remaining()  # as above
        return await self._entry.route(request, remaining_s, tracing.extract(context.invocation_metadata()))

    async def _release(self, request: router_pb2.ReleaseRequest, context: Context) -> wire.Response:
        self._entry.release(request)
        return router_pb2.ReleaseResponse()

    async def _explain(self, request: router_pb2.ExplainRequest, context: Context) -> wire.Response:
        check_generation(request.generation)
        return self._report.explain(request.generation)

    async def _status(self, request: router_pb2.StatusRequest, context: Context) -> wire.Response:
        return self._report.status(request.zone, self._clock())
